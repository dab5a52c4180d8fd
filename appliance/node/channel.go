package node

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"peerage/balancing"
	"peerage/balancing/heartbeat"
	"peerage/balancing/keys"
	"peerage/takeover"
)

// The guard and its server speak over a socket pair, one JSON message a line. There
// are two kinds, one for each direction; both are bounded, and neither side waits
// for an answer.

// toServer is what the guard tells: the picture of the site whenever it changes.
type toServer struct {
	View  *balancing.View `json:"view,omitempty"`
	Guard *GuardStatus    `json:"guard,omitempty"`
	Stop  bool            `json:"stop,omitempty"` // finish what is in progress and end
	Begin *beginning      `json:"begin,omitempty"`
	Took  *took           `json:"took,omitempty"`

	Leaving *leaving `json:"leaving,omitempty"` // VIPs that go to a peer in order
}

// beginning is the first message to a server, and no other: what its guard goes by. The
// files of it may be closed to the server's user.
type beginning struct {
	SiteKey  string `json:"site_key"` // as [keys.ParseRing] reads it
	Document string `json:"document"` // YAML
}

// change asks the guard to go by something else from now on, and to write it down.
type change struct {
	ID uint64 `json:"id"`

	// Until is when the server is about to give the change up: the guard must not go by it
	// after that. Zero is never.
	Until time.Time `json:"until,omitzero"`

	Document string           `json:"document,omitempty"` // of the site; YAML
	SiteKey  string           `json:"site_key,omitempty"`
	Name     balancing.NodeID `json:"name,omitempty"`  // of this node: it leaves, and comes back with it
	Leave    string           `json:"leave,omitempty"` // the node ends; why
}

// took answers a change or a set: Err is "" if the guard goes by it. A change outlives a
// loss of power then.
type took struct {
	ID      uint64 `json:"id"`
	Err     string `json:"err,omitempty"`
	Version uint64 `json:"version,omitempty"` // of the settings, after a set
}

// toGuard is what the server tells. A health token comes every [healthEvery], or
// [quietEvery], but only if the server has just answered a request of its own through its own
// listener.
type toGuard struct {
	Token *token `json:"token,omitempty"`
	Ask   bool   `json:"ask,omitempty"` // the peers' reports are too old for a decision
	Set   *set   `json:"set,omitempty"`

	Change *change `json:"change,omitempty"`
	Left   *left   `json:"left,omitempty"`

	Orders *ordered `json:"orders,omitempty"` // in place of those told before
}

// set asks the guard to change settings of the whole site. It names only what is to be
// another, for somebody else may change the rest at the same time.
type set struct {
	ID    uint64          `json:"id"`
	Patch json.RawMessage `json:"patch,omitempty"` // some of [balancing.Settings]
	Reset bool            `json:"reset,omitempty"` // to those of the site document
}

// token says that the server is well, and how it is.
type token struct {
	Load   balancing.Load      `json:"load"`
	Debit  balancing.Load      `json:"debit"`
	Shed   balancing.Load      `json:"shed"`
	Unable []balancing.RouteID `json:"unable,omitempty"`
	Amiss  []string            `json:"amiss,omitempty"` // what an operator should see to
}

// GuardStatus is what the guard knows and the server shows.
type GuardStatus struct {
	PID      int                `json:"pid"`
	Started  time.Time          `json:"started"`
	Reports  heartbeat.Counters `json:"reports"`
	Takeover takeover.Status    `json:"takeover"`
	Amiss    []string           `json:"amiss,omitempty"` // why the node is degraded
}

// maxMessage bounds one message: a view of the largest site that can be, or the longest
// document with an escape for every octet.
const maxMessage = 4 << 20

// channel is one end of the socket pair.
type channel struct {
	conn net.Conn
	in   *bufio.Scanner

	mu  sync.Mutex
	out *json.Encoder
}

// newPair returns this process's end, and the file to hand to the other process.
func newPair() (*channel, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the channel between guard and server: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "guard")
	ours, err := openChannel(os.NewFile(uintptr(fds[0]), "server"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// openChannel takes over f, one end of a socket pair.
func openChannel(f *os.File) (*channel, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("open the channel between guard and server: %w", err)
	}
	c := &channel{conn: conn, in: bufio.NewScanner(conn), out: json.NewEncoder(conn)}
	c.in.Buffer(make([]byte, 64<<10), maxMessage)
	c.out.SetEscapeHTML(false) // a document of nothing but '<' would be six times as long
	return c, nil
}

// send writes m. A reader that has stopped reading is given a second, for neither
// side may hang on the other.
func (c *channel) send(m any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	return c.out.Encode(m)
}

// receive reads the next message into m. It returns io.EOF when the other side is gone.
func (c *channel) receive(m any) error {
	if !c.in.Scan() {
		if err := c.in.Err(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, unix.ECONNRESET) {
			return err
		}
		return io.EOF
	}
	return json.Unmarshal(c.in.Bytes(), m)
}

// begin receives the first message to a server.
func (c *channel) begin() (*beginning, *keys.Ring, error) {
	var m toServer
	if err := c.receive(&m); err != nil {
		return nil, nil, fmt.Errorf("first message of the guard: %w", err)
	}
	if m.Begin == nil {
		return nil, nil, errors.New("first message of the guard: not what a server begins with")
	}
	ring, err := keys.ParseRing(m.Begin.SiteKey)
	if err != nil {
		return nil, nil, fmt.Errorf("first message of the guard: %w", err)
	}
	return m.Begin, ring, nil
}

func (c *channel) close() { c.conn.Close() }
