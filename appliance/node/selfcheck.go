package node

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"peerage/edge"
)

// selfCheck asks the node's own listener for its health over one connection, as a client
// would. It is what an idle server does most: so it is no http.Client, which hands each
// request to two goroutines, and gives it a timer. It is for one goroutine.
type selfCheck struct {
	at    string // host address and port
	roots *x509.CertPool

	conn   net.Conn // nil if there is none
	answer *bufio.Reader
	host   string      // that conn is for
	uncut  func() bool // ends the watch for the end of ctx
}

const (
	askWithin = time.Second // one check, with all that it takes
	maxHealth = 1 << 10     // octets of an answer's body
)

// ask returns nil if the node has answered for host. A status such as 503 is an answer as
// well: the node drains, and serves what it has.
func (c *selfCheck) ask(ctx context.Context, host string) error {
	until := time.Now().Add(askWithin)
	if c.conn != nil && c.host == host {
		err := c.exchange(host, until)
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	// A connection from before may have been closed in order: that it fails says nothing.
	c.close()
	if err := c.open(ctx, host, until); err != nil {
		return err
	}
	return c.exchange(host, until)
}

func (c *selfCheck) open(ctx context.Context, host string, until time.Time) error {
	d := tls.Dialer{NetDialer: &net.Dialer{Deadline: until}, Config: &tls.Config{RootCAs: c.roots, ServerName: host}}
	conn, err := d.DialContext(ctx, "tcp", c.at)
	if err != nil {
		return err
	}
	c.conn, c.answer, c.host = conn, bufio.NewReader(conn), host
	c.uncut = context.AfterFunc(ctx, func() { conn.Close() })
	return nil
}

// exchange asks over the connection that is open, and closes it unless it can be used again.
func (c *selfCheck) exchange(host string, until time.Time) error {
	again, err := c.once(host, until)
	if !again {
		c.close()
	}
	return err
}

func (c *selfCheck) once(host string, until time.Time) (again bool, err error) {
	if err := c.conn.SetDeadline(until); err != nil {
		return false, err
	}
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", edge.HealthPath, host); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(c.answer, nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxHealth+1))
	return err == nil && n <= maxHealth && !resp.Close, err
}

func (c *selfCheck) close() {
	if c.conn != nil {
		c.uncut()
		c.conn.Close()
		c.conn = nil
	}
}
