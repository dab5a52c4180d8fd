package node

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"peerage/edge"
)

// selfCheck asks the node's own listener for its health over one connection, as a client
// would. It is what an idle server does most: so it is no http.Client, which hands each
// request to two goroutines, and gives it a timer. It is for one goroutine.
type selfCheck struct {
	at    string // host address and port
	roots *x509.CertPool

	conn   *tls.Conn // nil if there is none
	answer *bufio.Reader
	host   string // that conn is for
	uncut  func() bool
}

// askWithin is how long one check may take.
const askWithin = time.Second

// ask returns nil if the node has answered for host. A status such as 503 is an answer as
// well: the node drains, and serves what it has.
func (c *selfCheck) ask(ctx context.Context, host string) error {
	if c.conn != nil && c.host == host && c.once(host) == nil {
		return nil
	}
	// What was open may have been closed in order, so it says nothing.
	c.close()
	if err := c.open(ctx, host); err != nil {
		return err
	}
	return c.once(host)
}

func (c *selfCheck) open(ctx context.Context, host string) error {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: askWithin}, Config: &tls.Config{RootCAs: c.roots, ServerName: host}}
	conn, err := d.DialContext(ctx, "tcp", c.at)
	if err != nil {
		return err
	}
	c.conn, c.answer, c.host = conn.(*tls.Conn), bufio.NewReader(conn), host
	c.uncut = context.AfterFunc(ctx, func() { conn.Close() })
	return nil
}

// once asks over the connection that is open.
func (c *selfCheck) once(host string) error {
	err := c.exchange(host)
	if err != nil {
		c.close()
	}
	return err
}

func (c *selfCheck) exchange(host string) error {
	if err := c.conn.SetDeadline(time.Now().Add(askWithin)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", edge.HealthPath, host); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.answer, nil)
	if err != nil {
		return fmt.Errorf("answer to the self-check: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10)); err != nil {
		return err
	}
	if resp.Close {
		c.close()
	}
	return nil
}

func (c *selfCheck) close() {
	if c.conn == nil {
		return
	}
	c.uncut()
	c.conn.Close()
	c.conn = nil
}
