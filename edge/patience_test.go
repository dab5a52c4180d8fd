package edge

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"peerage/balancing"
)

// The stories of slow clients run on a false clock, over pipes, against the server of
// the HTTPS port. A pipe holds nothing: whoever does not read keeps the writer waiting.

func TestSlowClientsAreCutOff(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 100000\r\n"
	for _, k := range []struct {
		what   string
		origin origin
		say    string
		drip   string        // said every 50 s, five times
		after  time.Duration // the connection is closed
	}{
		{"says nothing", tell, "", "", headerTimeout},
		{"half a head", tell, "GET / HTTP/1.1\r\nHo", "", headerTimeout},
		{"idle after a request", tell, "GET /" + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n", "", idleTimeout},
		{"a body that stops", tell, head + "\r\nabc", "", patience},
		{"a body that drips", tell, head + "\r\nabc", "abc", 5*50*time.Second + patience},
		{"a body that nobody wants", ignore, head + "\r\nabc", "", patience},
		{"a body that nobody wants, and a long answer", ignoreAtLength, head + "\r\nabc", "", patience},
		{"a body for somebody else", tell, "POST / HTTP/1.1\r\nHost: x.example\r\nContent-Length: 1000\r\n\r\nabc", "", patience},
		{"a body that is expected and does not come", tell, head + "Expect: 100-continue\r\n\r\n", "", patience},
	} {
		t.Run(k.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := pipeTo(t, k.origin)
				began := time.Now()
				closed := make(chan time.Duration)
				go func() {
					io.Copy(io.Discard, conn)
					closed <- time.Since(began)
				}()
				io.WriteString(conn, k.say)
				if k.drip != "" {
					for range 5 {
						time.Sleep(50 * time.Second)
						io.WriteString(conn, k.drip)
					}
				}
				// net/http waits up to half a second more, for an answer to arrive.
				if got := <-closed; got < k.after || got > k.after+time.Second {
					t.Errorf("cut off after %v, want %v", got, k.after)
				}
			})
		})
	}
}

func TestClientThatDoesNotReadIsCutOff(t *testing.T) {
	for _, size := range []int{100, 1 << 20} { // one that fits the buffers, and one that does not
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := pipeTo(t, func(_ balancing.NodeID, w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, size)) })
				io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
				time.Sleep(patience + time.Second)
				if n, err := io.Copy(io.Discard, conn); err != nil || n > 16<<10 {
					t.Errorf("read %d octets, %v, after the client had slept; want the end", n, err)
				}
			})
		})
	}
}

func TestHTTP2StreamIsCutOffAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan time.Duration, 1)
		client := pipeClient(t, func(_ balancing.NodeID, w http.ResponseWriter, r *http.Request) {
			began := time.Now()
			if r.URL.Path == "/up" {
				io.Copy(io.Discard, r.Body)
				ended <- time.Since(began)
			} else if r.URL.Path == "/down" {
				for {
					if _, err := w.Write(make([]byte, 32<<10)); err != nil {
						ended <- time.Since(began)
						return
					}
				}
			}
		})
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+host+"/down", nil)
		stalled, err := client.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer stalled.Body.Close()
		if got := <-ended; got != patience {
			t.Errorf("answer that is not read: cut off after %v, want %v", got, patience)
		}
		body, never := io.Pipe()
		defer never.Close()
		r, _ = http.NewRequestWithContext(t.Context(), "POST", "https://"+host+"/up", body)
		go client.RoundTrip(r)
		if got := <-ended; got != patience {
			t.Errorf("body that does not come: cut off after %v, want %v", got, patience)
		}
		r, _ = http.NewRequestWithContext(t.Context(), "GET", "https://"+host+"/", nil)
		resp, err := client.RoundTrip(r)
		if err != nil || resp.ProtoMajor != 2 {
			t.Fatalf("the next request on the connection: %v", err)
		}
		resp.Body.Close()
	})
}

// An origin may be quiet for as long as it likes, before its answer and in it.
func TestQuietOriginIsNotCutOff(t *testing.T) {
	quiet := func(_ balancing.NodeID, w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		time.Sleep(2 * time.Second)
		r.Body.Read(make([]byte, 1)) // some look whether there really is no more
		for range 3 {
			time.Sleep(5 * patience)
			if r.Context().Err() != nil {
				return
			}
			io.WriteString(w, "x")
			http.NewResponseController(w).Flush()
		}
		time.Sleep(5 * patience)
	}
	for _, k := range []struct {
		method, body string
	}{{"GET", ""}, {"POST", "body"}} {
		t.Run("HTTP/2 "+k.method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := pipeClient(t, quiet)
				r, _ := http.NewRequestWithContext(t.Context(), k.method, "https://"+host+"/", strings.NewReader(k.body))
				resp, err := client.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(resp.Body); string(b) != "xxx" || err != nil {
					t.Errorf("body %q, %v; want xxx", b, err)
				}
			})
		})
		t.Run("HTTP/1.1 "+k.method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := pipeTo(t, quiet)
				br := bufio.NewReader(conn)
				for range 2 { // and the connection is good for another request
					fmt.Fprintf(conn, "%s / HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", k.method, host, len(k.body), k.body)
					resp, err := http.ReadResponse(br, nil)
					if err != nil {
						t.Fatal(err)
					}
					if b, err := io.ReadAll(resp.Body); string(b) != "xxx" || err != nil {
						t.Errorf("body %q, %v; want xxx", b, err)
					}
					time.Sleep(patience + 10*time.Second)
				}
			})
		})
	}
}

// RFC 9110 10.1.1: the client that waits for 100 (Continue) gets it, or the answer.
func TestExpectedBody(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
	synctest.Test(t, func(t *testing.T) {
		conn := pipeTo(t, tell)
		br := bufio.NewReader(conn)
		for range 2 {
			for _, k := range []struct {
				say    string
				status int
			}{{head, 100}, {"abc", 200}} {
				io.WriteString(conn, k.say)
				resp, err := http.ReadResponse(br, nil)
				if err != nil || resp.StatusCode != k.status {
					t.Fatalf("after %q: %v, %v; want %d", k.say, resp, err, k.status)
				}
				io.Copy(io.Discard, resp.Body)
			}
			time.Sleep(patience + time.Second) // the deadlines of the first request are over
		}
	})
	synctest.Test(t, func(t *testing.T) {
		conn, began := pipeTo(t, ignore), time.Now()
		io.WriteString(conn, head)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != 200 || time.Since(began) > 0 {
			t.Errorf("body that nobody wants: %v, %v after %v; want 200 at once", resp, err, time.Since(began))
		}
	})
}

// ignore is an origin that does not read what it is sent.
func ignore(_ balancing.NodeID, w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "no") }

func ignoreAtLength(_ balancing.NodeID, w http.ResponseWriter, _ *http.Request) {
	w.Write(make([]byte, 64<<10))
}

// pipeTo returns a plain connection to the HTTPS server of a node.
func pipeTo(t *testing.T, o origin) net.Conn {
	t.Helper()
	return <-serveLoop(t, o, func(srv *http.Server, l net.Listener) error { return srv.Serve(l) })
}

// pipeClient returns a client whose one connection goes to such a server, by HTTP/2.
func pipeClient(t *testing.T, o origin) *http.Transport {
	t.Helper()
	var roots *tls.Config
	conns := serveLoop(t, o, func(srv *http.Server, l net.Listener) error { return srv.ServeTLS(l, "", "") })
	roots = &tls.Config{InsecureSkipVerify: true, ServerName: host} // the CA is not the matter here
	p := new(http.Protocols)
	p.SetHTTP2(true)
	rt := &http.Transport{
		Protocols: p, TLSClientConfig: roots,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return <-conns, nil },
	}
	t.Cleanup(rt.CloseIdleConnections)
	return rt
}

// serveLoop runs the server on one connection; its other end is in the channel.
func serveLoop(t *testing.T, o origin, serve func(*http.Server, net.Listener) error) <-chan net.Conn {
	t.Helper()
	srv := build(t, o).nodes["a"].httpsServer()
	near, far := net.Pipe()
	l := &oneConn{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
	l.conn <- far
	done := make(chan struct{})
	go func() {
		serve(srv, l)
		close(done)
	}()
	t.Cleanup(func() {
		near.Close()
		srv.Close()
		<-done
	})
	conns := make(chan net.Conn, 1)
	conns <- near
	return conns
}

// oneConn is a listener with one connection.
type oneConn struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error   { close(l.closed); return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }
