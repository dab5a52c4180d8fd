// Package bank is the application behind the demo's site: a small bank whose sessions
// live in the memory of one instance, as those of many real applications do.
//
// Start with [New]. Each node of the demo has a bank of its own. A client that is sent
// to another node in mid-session meets a bank that does not know it, and says so in
// large letters: that is how a broken pin shows. Every answer tells in the header
// X-Bank who gave it.
//
// Nobody's money is in it. It keeps nothing on disk and starts no goroutine.
package bank

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"strings"
	"time"
)

// Static holds, in its folder "static", the files that the pages refer to under
// /static/. The bank does not serve them; the site does.
//
//go:embed static
var Static embed.FS

//go:embed pages
var pageFiles embed.FS

const (
	cookieName  = "bank_session"
	maxSessions = 10_000
	maxForm     = 4 << 10 // octets
	maxSlow     = 30 * time.Second
)

// Config tells one bank from the others.
type Config struct {
	Name string // of the node whose bank it is, "n1"

	// Domain is the site's host name. The session cookie is set for it, so that the
	// node names below it get the cookie too. "" keeps the cookie to the name under
	// which it was set.
	Domain string
}

type bank struct {
	c        Config
	sessions *sessions
}

// New returns a bank without sessions.
func New(c Config) http.Handler {
	b := &bank{c: c, sessions: newSessions(maxSessions)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", b.start)
	mux.HandleFunc("GET /whoami", b.whoAmI)
	mux.HandleFunc("GET /quiet", b.quiet)
	mux.HandleFunc("GET /busy", b.busy)
	mux.HandleFunc("GET /slow", b.slow)
	mux.HandleFunc("GET /work", work(newProcessor(Cores)))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeText(w, "ok\n") })
	mux.Handle("GET /banking", http.RedirectHandler("/banking/", http.StatusTemporaryRedirect))
	mux.HandleFunc("GET /banking/{$}", b.entry)
	mux.HandleFunc("POST /banking/transfer", b.transfer)
	mux.HandleFunc("GET /banking/account", b.account)
	mux.HandleFunc("GET /banking/slow", b.slow)
	mux.HandleFunc("GET /banking/logout", b.logout)
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		b.say(w, r, http.StatusNotFound, notice{Title: "There is no such page", Text: "The bank has nothing at this address."})
	})

	sameOrigin := http.NewCrossOriginProtection()
	sameOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.say(w, r, http.StatusForbidden, notice{Title: "Refused", Text: "Another site's page sent this form. No money has moved."})
	}))
	return b.marked(sameOrigin.Handler(mux))
}

// marked sets the headers that every answer has.
func (b *bank) marked(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Bank", b.c.Name)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		// No form-action: it would also forbid the redirect to a node's own name that
		// may follow a form.
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'")
		next.ServeHTTP(w, r)
	})
}

func (b *bank) start(w http.ResponseWriter, r *http.Request) {
	b.render(w, r, http.StatusOK, startPage, nil)
}

// quiet is a page whose visitors the site moves without a redirect.
func (b *bank) quiet(w http.ResponseWriter, r *http.Request) {
	b.render(w, r, http.StatusOK, quietPage, nil)
}

// busy is a page that keeps its node busy: each of its images is a slow request, and
// what a page loads is never redirected.
func (b *bank) busy(w http.ResponseWriter, r *http.Request) {
	b.render(w, r, http.StatusOK, busyPage, struct{ Images, Seconds int }{40, 20})
}

// whoAmI tells what arrives here of a request, so that one can see what the node does
// to it on the way.
func (b *bank) whoAmI(w http.ResponseWriter, r *http.Request) {
	var t strings.Builder
	line := func(k, v string) {
		if v != "" {
			fmt.Fprintf(&t, "%-18s %s\n", k+":", v)
		}
	}
	line("bank", b.c.Name)
	line("host", r.Host)
	line("protocol", r.Proto+" (from the node to the bank)")
	line("peer", r.RemoteAddr)
	for _, k := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "Via", "X-Pin-Lost"} {
		line(k, strings.Join(r.Header.Values(k), ", "))
	}
	if wantsHTML(r) {
		b.say(w, r, http.StatusOK, notice{Title: "What the bank sees of you", Text: "The node has ended your TLS and speaks to its bank for you.", Listing: t.String()})
		return
	}
	writeText(w, t.String())
}

// slow holds a request for the time it asks for, a second if it does not say, so that
// a node can be kept busy.
func (b *bank) slow(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/banking/") {
		if _, _, known := b.session(r); !known && hasSession(r) {
			b.sayUnknown(w, r)
			return
		}
	}
	hold := time.Second
	if v := r.URL.Query().Get("for"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 || d > maxSlow {
			b.say(w, r, http.StatusBadRequest, notice{
				Title: "How long?", Text: fmt.Sprintf("Say ?for=3s, or any time up to %v.", maxSlow),
			})
			return
		}
		hold = d
	}
	t := time.NewTimer(hold)
	defer t.Stop()
	select {
	case <-t.C:
		b.held(w, r, hold)
	case <-r.Context().Done():
	}
}

// held answers a slow request in the form that suits who sent it: an image of the busy
// page, a person, a script.
func (b *bank) held(w http.ResponseWriter, r *http.Request, hold time.Duration) {
	text := fmt.Sprintf("%s held this request for %v", b.c.Name, hold)
	switch accept := r.Header.Get("Accept"); {
	case strings.HasPrefix(accept, "image/"):
		w.Header().Set("Content-Type", "image/svg+xml")
		drawing.Execute(w, b.c.Name)
	case wantsHTML(r):
		n := notice{Title: text, Text: "It was one request in progress, that is, a load of 5 per cent on a node of the demo."}
		if strings.HasPrefix(r.URL.Path, "/banking/") {
			n.Link, n.LinkText = "/banking/", "Back to the account"
		}
		b.say(w, r, http.StatusOK, n)
	default:
		writeText(w, text+"\n")
	}
}

// drawing is a square that names who answered.
var drawing = template.Must(template.New("").Parse(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 40">` +
	`<rect width="40" height="40" fill="#1f6f68"/>` +
	`<text x="20" y="26" fill="#fff" font-family="sans-serif" font-size="16" text-anchor="middle">{{.}}</text></svg>`))

// entry is where a session begins. One that this bank does not know is not replaced
// until the client says so by ?new, lest the loss goes unseen.
func (b *bank) entry(w http.ResponseWriter, r *http.Request) {
	_, a, known := b.session(r)
	switch {
	case known:
		b.render(w, r, http.StatusOK, accountPage, accountData{account: a})
	case !hasSession(r):
		b.render(w, r, http.StatusOK, accountPage, accountData{account: b.open(w, r), New: true})
	case r.URL.Query().Has("new"):
		b.open(w, r)
		http.Redirect(w, r, "/banking/", http.StatusSeeOther)
	default:
		b.sayUnknown(w, r)
	}
}

func (b *bank) transfer(w http.ResponseWriter, r *http.Request) {
	token, a, known := b.session(r)
	if !known {
		b.sayUnknown(w, r)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		b.say(w, r, http.StatusBadRequest, notice{Title: "The form cannot be read", Text: "No money has moved."})
		return
	}
	to, amount := r.PostForm.Get("to"), r.PostForm.Get("amount")
	t, problem := parseTransfer(to, amount)
	if problem == "" {
		problem = b.sessions.transfer(token, t)
	}
	if problem != "" {
		b.render(w, r, http.StatusUnprocessableEntity, accountPage, accountData{account: a, Problem: problem, To: to, Amount: amount})
		return
	}
	http.Redirect(w, r, "/banking/", http.StatusSeeOther)
}

// account is for scripts; a browser that comes here is shown the entry page.
func (b *bank) account(w http.ResponseWriter, r *http.Request) {
	_, a, known := b.session(r)
	switch {
	case !known:
		b.sayUnknown(w, r)
	case wantsJSON(r):
		writeJSON(w, http.StatusOK, struct {
			Bank    string `json:"bank"`
			Session string `json:"session"`
			Balance cents  `json:"balance"`
		}{b.c.Name, a.ID, a.Balance})
	default:
		b.render(w, r, http.StatusOK, accountPage, accountData{account: a})
	}
}

func (b *bank) logout(w http.ResponseWriter, r *http.Request) {
	token, _, known := b.session(r)
	if !known && hasSession(r) {
		b.sayUnknown(w, r)
		return
	}
	b.sessions.end(token)
	c := b.cookie(r, "")
	c.MaxAge = -1
	http.SetCookie(w, c)
	b.say(w, r, http.StatusOK, notice{
		Title: "Goodbye", Text: "Your session has ended, and with it your tie to this node. The next one begins wherever there is room.",
		Link: "/banking/", LinkText: "Open another session",
	})
}

// session returns what the bank knows of the session that r belongs to.
func (b *bank) session(r *http.Request) (token string, a account, known bool) {
	c, err := r.Cookie(cookieName)
	if err != nil {
		return "", account{}, false
	}
	a, known = b.sessions.account(c.Value)
	return c.Value, a, known
}

func hasSession(r *http.Request) bool {
	_, err := r.Cookie(cookieName)
	return err == nil
}

// open begins a session.
func (b *bank) open(w http.ResponseWriter, r *http.Request) account {
	token, a := b.sessions.open()
	http.SetCookie(w, b.cookie(r, token))
	return a
}

func (b *bank) cookie(r *http.Request, token string) *http.Cookie {
	c := &http.Cookie{
		Name: cookieName, Value: token, Path: "/banking",
		HttpOnly: true, SameSite: http.SameSiteLaxMode,
		Secure: r.Header.Get("X-Forwarded-Proto") == "https",
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	if b.c.Domain != "" && (host == b.c.Domain || strings.HasSuffix(host, "."+b.c.Domain)) {
		c.Domain = b.c.Domain // a client would not take it under any other host
	}
	return c
}

// sayUnknown answers a request that needs a session and has none that is known here.
func (b *bank) sayUnknown(w http.ResponseWriter, r *http.Request) {
	n := notice{
		Title: "You have no session here", Text: "This page belongs to a session. Open one first.",
		Link: "/banking/", LinkText: "Open a session",
	}
	if hasSession(r) {
		n = notice{
			Title: "This bank does not know your session", Bad: true,
			Text: "It began at the bank of another node, whose memory this one does not share. Either the tie between you and that node was broken, or that bank has forgotten you.",
			Link: "/banking/?new", LinkText: "Begin again here",
		}
	}
	if r.Header.Get("X-Pin-Lost") != "" {
		n.Text = "The node that held it is gone, and the memory of its bank with it. This node has taken over."
	}
	if wantsJSON(r) {
		writeJSON(w, http.StatusConflict, struct {
			Bank  string `json:"bank"`
			Error string `json:"error"`
		}{b.c.Name, n.Title})
		return
	}
	b.say(w, r, http.StatusConflict, n)
}

func wantsHTML(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/html")
}

func wantsJSON(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "application/json")
}

// The pages. Each is the layout with a "main" of its own.
var (
	startPage   = parsePage("start.html")
	accountPage = parsePage("account.html")
	noticePage  = parsePage("notice.html")
	quietPage   = parsePage("quiet.html")
	busyPage    = parsePage("busy.html")
)

func parsePage(name string) *template.Template {
	return template.Must(template.ParseFS(pageFiles, "pages/layout.html", "pages/"+name))
}

// accountData is what the account page shows.
type accountData struct {
	account
	New        bool // the session has just begun
	Problem    string
	To, Amount string // what the form held, if there is a problem
}

// notice is a page that says one thing.
type notice struct {
	Title, Text    string
	Listing        string // is shown line by line
	Bad            bool
	Link, LinkText string // "" leads to the start page
}

func (b *bank) say(w http.ResponseWriter, r *http.Request, status int, n notice) {
	if n.Link == "" {
		n.Link, n.LinkText = "/", "To the start page"
	}
	b.render(w, r, status, noticePage, n)
}

func (b *bank) render(w http.ResponseWriter, r *http.Request, status int, page *template.Template, data any) {
	var out bytes.Buffer
	err := page.ExecuteTemplate(&out, "layout.html", struct {
		Bank, Host string
		Page       any
	}{b.c.Name, r.Host, data})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	w.Write(out.Bytes())
}

func writeText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write([]byte(text))
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}
