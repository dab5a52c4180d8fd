package membership

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
)

// KeysPath is where a node that was away gets what it needs before it can understand its
// peers again, over the peer link.
const KeysPath = "/.peerage/keys"

const (
	fetchTimeout = 10 * time.Second
	fetchAtOnce  = 8

	// The answer is a version octet and parts: the length of the table's name (1 octet), the
	// name, the length of the part (4 octets), the part. A zero octet ends them.
	partsVersion = 1
	maxParts     = 1024
	maxPart      = 2 << 20
	maxFetch     = 96 << 20 // what the two tables can hold at most, and some
)

// Handler answers for [KeysPath]. It must be served to nodes of the site only; what it tells
// is sealed for them all the same.
func (r *Rotation) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "GET alone", http.StatusMethodNotAllowed)
			return
		}
		tag := r.tag()
		w.Header().Set("ETag", tag)
		if q.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		b := bufio.NewWriter(w)
		writeParts(b, r.tables())
		b.Flush()
	})
}

// tables in the order in which they are to be merged: who signed comes first.
func (r *Rotation) tables() []cluster.Document {
	return []cluster.Document{r.c.Registry.table, r.c.Table}
}

func (r *Rotation) tag() string {
	var tag []byte
	for _, t := range r.tables() {
		d := t.Digest()
		tag = append(tag, d[:16]...)
	}
	return `"` + hex.EncodeToString(tag) + `"`
}

func writeParts(w *bufio.Writer, documents []cluster.Document) {
	w.WriteByte(partsVersion)
	for _, d := range documents {
		for _, part := range d.Snapshot() {
			w.WriteByte(byte(len(d.Name())))
			w.WriteString(d.Name())
			w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
			w.Write(part)
		}
	}
	w.WriteByte(0)
}

var errParts = errors.New("answer not understood, or cut off")

// readParts reads what writeParts wrote, and hands it over part by part. A table that is
// not known is skipped.
func readParts(from io.Reader, merge func(table string, part []byte)) error {
	r := bufio.NewReader(io.LimitReader(from, maxFetch))
	if v, err := r.ReadByte(); err != nil || v != partsVersion {
		return errParts
	}
	for range maxParts {
		n, err := r.ReadByte()
		if err != nil {
			return errParts
		}
		if n == 0 {
			return nil
		}
		head := make([]byte, int(n)+4)
		if _, err := io.ReadFull(r, head); err != nil {
			return errParts
		}
		size := binary.BigEndian.Uint32(head[n:])
		if size > maxPart {
			return errParts
		}
		// Not made before it is there: the length is the peer's word.
		part, err := io.ReadAll(io.LimitReader(r, int64(size)))
		if err != nil || len(part) != int(size) {
			return errParts
		}
		merge(string(head[:n]), part)
	}
	return errParts
}

// Fetch asks peers, one after the other, for what they know of members and keys, and merges
// it. Peers are URLs without a path. It is an error if none of them answers.
func (r *Rotation) Fetch(ctx context.Context, client *http.Client, peers []string) error {
	var errs []error
	answered := false
	for _, p := range peers {
		if err := r.fetch(ctx, client, p); err != nil {
			errs = append(errs, fmt.Errorf("fetch site keys from %s: %w", p, err))
			continue
		}
		answered = true
	}
	if answered {
		return nil
	}
	return errors.Join(errs...)
}

func (r *Rotation) fetch(ctx context.Context, client *http.Client, peer string) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, peer+KeysPath, nil)
	if err != nil {
		return err
	}
	q.Header.Set("If-None-Match", r.tag())
	resp, err := client.Do(q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotModified:
		return nil
	case http.StatusOK:
	default:
		return fmt.Errorf("answered with HTTP status %d", resp.StatusCode)
	}
	// An entry that is refused keeps none of the others out.
	var refused error
	err = readParts(resp.Body, func(table string, part []byte) {
		for _, t := range r.tables() {
			if t.Name() == table {
				_, err := t.Merge(part)
				refused = cmp.Or(refused, err)
			}
		}
	})
	return cmp.Or(err, refused)
}

func (r *Rotation) fetchLoop(ctx context.Context) {
	t := time.NewTicker(fetchEvery)
	defer t.Stop()
	for {
		r.fetchAbsent(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// fetchAbsent asks the nodes that are off-line. Most of them are just that; but one that
// seals with a key which this node does not have looks the same.
func (r *Rotation) fetchAbsent(ctx context.Context) {
	if r.c.Peer == nil {
		return
	}
	live := append(r.c.Live(), r.c.Self)
	var all sync.WaitGroup
	turns := make(chan struct{}, fetchAtOnce)
	for _, n := range r.c.Nodes() {
		if slices.Contains(live, n) {
			continue
		}
		all.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			r.fetchFrom(ctx, n)
		})
	}
	all.Wait()
}

func (r *Rotation) fetchFrom(ctx context.Context, n balancing.NodeID) {
	client, url := r.c.Peer(n)
	if client == nil {
		return
	}
	// In TLS 1.3 the client's certificate comes last: who refuses it has shown before that it
	// is the peer. An alert that comes earlier could be anybody's.
	var proven atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) { proven.Store(err == nil) },
	})
	err := r.fetch(ctx, client, url)
	if err != nil {
		r.c.Log.Debug("site keys not fetched", "peer", string(n), "err", err)
	}
	if r.c.Refused != nil {
		op, ok := errors.AsType[*net.OpError](err)
		r.c.Refused(n, proven.Load() && ok && op.Op == "remote error") // a TLS alert
	}
}
