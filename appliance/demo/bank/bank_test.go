package bank

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// visitor is a client with cookies that follows no redirects.
type visitor struct {
	t    *testing.T
	jar  *cookiejar.Jar
	bank http.Handler
	head http.Header // sent with each request
}

func newVisitor(t *testing.T, bank http.Handler) *visitor {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &visitor{t: t, jar: jar, bank: bank, head: http.Header{"X-Forwarded-Proto": {"https"}}}
}

func (v *visitor) do(r *http.Request) (*http.Response, string) {
	v.t.Helper()
	u := &url.URL{Scheme: "https", Host: r.Host, Path: r.URL.Path}
	for k := range v.head {
		r.Header.Set(k, v.head.Get(k))
	}
	for _, c := range v.jar.Cookies(u) {
		r.AddCookie(c)
	}
	w := httptest.NewRecorder()
	v.bank.ServeHTTP(w, r)
	resp := w.Result()
	v.jar.SetCookies(u, resp.Cookies())
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return resp, string(body)
}

func (v *visitor) get(url string) (*http.Response, string) {
	v.t.Helper()
	return v.do(httptest.NewRequest("GET", url, nil))
}

// wants gets url, and checks the status and that each text is in the answer.
func (v *visitor) wants(url string, status int, texts ...string) {
	v.t.Helper()
	resp, body := v.get(url)
	check(v.t, "GET "+url, resp, body, status, texts...)
}

// pays fills in the form.
func (v *visitor) pays(to, amount string, status int, texts ...string) {
	v.t.Helper()
	form := url.Values{"to": {to}, "amount": {amount}}
	r := httptest.NewRequest("POST", site+"/banking/transfer", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, body := v.do(r)
	check(v.t, fmt.Sprintf("pay %q to %q", amount, to), resp, body, status, texts...)
}

func check(t *testing.T, what string, resp *http.Response, body string, status int, texts ...string) {
	t.Helper()
	if resp.StatusCode != status {
		t.Errorf("%s: got status %d, want %d", what, resp.StatusCode, status)
	}
	for _, text := range texts {
		if !strings.Contains(body, text) {
			t.Errorf("%s: %q is not in the answer:\n%s", what, text, body)
		}
	}
}

const (
	site = "https://www.peerage.test:8443"
	node = "https://n1.www.peerage.test:8443"

	lost = "This bank does not know your session"
)

func TestEveryAnswerNamesItsBank(t *testing.T) {
	for _, path := range []string{"/", "/healthz", "/whoami", "/slow?for=0s", "/banking", "/banking/", "/banking/account", "/banking/logout", "/nowhere", "/banking/nowhere", "/banking/transfer"} {
		resp, _ := newVisitor(t, New(Config{Name: "n1"})).get(site + path)
		if got := resp.Header.Get("X-Bank"); got != "n1" {
			t.Errorf("%s: got X-Bank %q, want n1", path, got)
		}
		if got := resp.Header.Get("Cache-Control"); got != "no-store" {
			t.Errorf("%s: got Cache-Control %q, want no-store", path, got)
		}
	}
}

func TestSessionFromEntryToLogout(t *testing.T) {
	v := newVisitor(t, New(Config{Name: "n1"}))
	v.wants(site+"/banking/account", http.StatusConflict, "You have no session here")
	v.wants(site+"/banking/", http.StatusOK, "€ 1000.00", "begun just now", "None yet")
	v.pays("Ada", "12.50", http.StatusSeeOther)
	v.pays("  Grace  ", " 7,5 ", http.StatusSeeOther)
	v.wants(site+"/banking/", http.StatusOK, "€ 980.00", "Ada", "− € 12.50", "<td>Grace</td>")
	v.pays("Ada", "980.01", http.StatusUnprocessableEntity, "not enough", `value="980.01"`)
	v.pays("<b>Eve</b>", "1", http.StatusSeeOther)
	v.wants(site+"/banking/account", http.StatusOK, "€ 979.00", "&lt;b&gt;Eve")
	v.wants(site+"/banking/logout", http.StatusOK, "Goodbye")
	v.wants(site+"/banking/account", http.StatusConflict, "You have no session here")
	v.wants(site+"/banking/logout", http.StatusOK, "Goodbye")
	v.wants(site+"/banking/", http.StatusOK, "€ 1000.00")
}

func TestAccountAsJSON(t *testing.T) {
	v := newVisitor(t, New(Config{Name: "n1"}))
	v.head.Set("Accept", "application/json")
	v.wants(site+"/banking/account", http.StatusConflict, `{"bank":"n1","error":"You have no session here"}`)
	v.wants(site+"/banking/", http.StatusOK)
	v.pays("Ada", "0.05", http.StatusSeeOther)
	resp, body := v.get(site + "/banking/account")
	if want := regexp.MustCompile(`^\{"bank":"n1","session":"[A-Z2-7]{8}","balance":999\.95\}\n$`); !want.MatchString(body) {
		t.Errorf("got %q, want it to match %s", body, want)
	}
	if got := resp.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("got type %q", got)
	}
	v.bank = New(Config{Name: "n2"})
	v.wants(site+"/banking/account", http.StatusConflict, `{"bank":"n2","error":"`+lost+`"}`)
}

func TestAnotherBankDoesNotKnowTheSession(t *testing.T) {
	n1, n2 := New(Config{Name: "n1"}), New(Config{Name: "n2"})
	v := newVisitor(t, n1)
	v.wants(site+"/banking/", http.StatusOK)
	v.pays("Ada", "1", http.StatusSeeOther)

	v.bank = n2
	for _, path := range []string{"/banking/", "/banking/account", "/banking/slow?for=0s", "/banking/logout"} {
		v.wants(site+path, http.StatusConflict, lost, "bank of <strong>n2</strong>")
	}
	v.pays("Ada", "1", http.StatusConflict, lost)
	v.head.Set("X-Pin-Lost", "banking")
	v.wants(site+"/banking/", http.StatusConflict, lost, "is gone")
	v.head.Del("X-Pin-Lost")

	v.bank = n1 // nothing is lost if it was a mistake
	v.wants(site+"/banking/", http.StatusOK, "€ 999.00")

	v.bank = n2
	v.wants(site+"/banking/?new", http.StatusSeeOther)
	v.wants(site+"/banking/", http.StatusOK, "€ 1000.00")
	v.wants(site+"/slow?for=0s", http.StatusOK, "n2 held")
}

func TestCookie(t *testing.T) {
	for _, tt := range []struct{ name, url, proto, want string }{
		{"under the site's name", site, "https", "; Path=/banking; Domain=www.peerage.test; HttpOnly; Secure; SameSite=Lax"},
		{"under a node's name", node, "https", "; Path=/banking; Domain=www.peerage.test; HttpOnly; Secure; SameSite=Lax"},
		{"under another name", "https://127.0.0.21:8443", "https", "; Path=/banking; HttpOnly; Secure; SameSite=Lax"},
		{"under a name that ends alike", "https://xwww.peerage.test", "https", "; Path=/banking; HttpOnly; Secure; SameSite=Lax"},
		{"without TLS", "http://www.peerage.test", "http", "; Path=/banking; Domain=www.peerage.test; HttpOnly; SameSite=Lax"},
	} {
		v := newVisitor(t, New(Config{Name: "n1", Domain: "www.peerage.test"}))
		v.head.Set("X-Forwarded-Proto", tt.proto)
		resp, _ := v.get(tt.url + "/banking/")
		name, rest, _ := strings.Cut(resp.Header.Get("Set-Cookie"), "=")
		_, attributes, _ := strings.Cut(rest, ";")
		if got := ";" + attributes; name != "bank_session" || got != tt.want {
			t.Errorf("%s: got cookie %s with %q, want %q", tt.name, name, got, tt.want)
		}
	}
	t.Run("goes with the client to a node's name", func(t *testing.T) {
		v := newVisitor(t, New(Config{Name: "n1", Domain: "www.peerage.test"}))
		v.wants(site+"/banking/", http.StatusOK)
		v.pays("Ada", "1", http.StatusSeeOther)
		v.wants(node+"/banking/", http.StatusOK, "€ 999.00")
		v.wants(node+"/banking/logout", http.StatusOK)
		v.wants(site+"/banking/account", http.StatusConflict, "You have no session here")
	})
}

func TestOldestSessionIsDropped(t *testing.T) {
	s := newSessions(3)
	var tokens []string
	for range 5 {
		token, _ := s.open()
		tokens = append(tokens, token)
	}
	s.end(tokens[2])
	s.end("unknown")
	for i, want := range []bool{false, false, false, true, true} {
		if _, known := s.account(tokens[i]); known != want {
			t.Errorf("session %d: known = %t, want %t", i, known, want)
		}
	}
	if len(s.all) != s.oldest.Len() {
		t.Errorf("%d sessions by token, %d by age", len(s.all), s.oldest.Len())
	}
}

func TestOnlyLatestTransfersAreKept(t *testing.T) {
	s := newSessions(1)
	token, before := s.open()
	for i := range 10 {
		if problem := s.transfer(token, transfer{fmt.Sprint(i), 1}); problem != "" {
			t.Fatal(problem)
		}
	}
	a, _ := s.account(token)
	if len(a.Transfers) != maxTransfers || a.Transfers[0].To != "9" {
		t.Errorf("got %v, want the latest %d", a.Transfers, maxTransfers)
	}
	if before.Balance != opening || len(before.Transfers) != 0 {
		t.Errorf("an account that was handed out has changed: %v", before)
	}
}

func TestFormsOfOtherSitesAreRefused(t *testing.T) {
	v := newVisitor(t, New(Config{Name: "n1"}))
	v.wants(site+"/banking/", http.StatusOK)
	v.head.Set("Sec-Fetch-Site", "cross-site")
	v.pays("Eve", "1000", http.StatusForbidden, "No money has moved")
	v.head.Set("Sec-Fetch-Site", "same-origin")
	v.pays("Ada", "1", http.StatusSeeOther)
	v.wants(site+"/banking/", http.StatusOK, "€ 999.00")
}

func TestBadForms(t *testing.T) {
	v := newVisitor(t, New(Config{Name: "n1"}))
	v.wants(site+"/banking/", http.StatusOK)
	for _, amount := range []string{"", "0", "0.00", "-1", "+1", "1.234", "1.2.3", "x", "1e3", ".5", "1 0", "99999999999999999999", "٣"} {
		v.pays("Ada", amount, http.StatusUnprocessableEntity, "Say how much")
	}
	for _, to := range []string{"", "  ", "a\nb", "\xff", strings.Repeat("é", 41)} {
		v.pays(to, "1", http.StatusUnprocessableEntity, "Say who is to get")
	}
	v.pays(strings.Repeat("x", maxForm), "1", http.StatusBadRequest, "cannot be read")
	v.pays(strings.Repeat("é", 40), "1.", http.StatusSeeOther)
	v.wants(site+"/banking/", http.StatusOK, "€ 999.00")
}

func TestSlowHoldsTheRequest(t *testing.T) {
	for query, want := range map[string]time.Duration{"": time.Second, "?for=3s": 3 * time.Second, "?for=30s": 30 * time.Second, "?for=0s": 0} {
		synctest.Test(t, func(t *testing.T) {
			v := newVisitor(t, New(Config{Name: "n1"}))
			for _, path := range []string{"/slow", "/banking/slow"} {
				start := time.Now()
				v.wants(site+path+query, http.StatusOK, fmt.Sprintf("n1 held this request for %v", want))
				if got := time.Since(start); got != want {
					t.Errorf("%s%s took %v, want %v", path, query, got, want)
				}
			}
		})
	}
	t.Run("ends with the client", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			newVisitor(t, New(Config{Name: "n1"})).do(httptest.NewRequestWithContext(ctx, "GET", site+"/slow?for=30s", nil))
			if got := time.Since(start); got != time.Second {
				t.Errorf("took %v, want 1s", got)
			}
		})
	})
	v := newVisitor(t, New(Config{Name: "n1"}))
	for _, query := range []string{"?for=31s", "?for=-1s", "?for=3", "?for=x"} {
		v.wants(site+"/slow"+query, http.StatusBadRequest, "How long?")
	}
}

func TestWhoAmIShowsWhatArrives(t *testing.T) {
	v := newVisitor(t, New(Config{Name: "n1"}))
	v.head.Set("X-Forwarded-For", "127.0.0.9")
	v.wants(site+"/whoami", http.StatusOK, "bank:              n1\n", "www.peerage.test:8443", "HTTP/1.1", "X-Forwarded-For:   127.0.0.9\n", "X-Forwarded-Proto: https\n")
}

func TestBrowserIsShownPages(t *testing.T) {
	v := newVisitor(t, New(Config{Name: "n1"}))
	v.wants(site+"/busy", http.StatusOK, "n1 is busy", `src="/slow?for=20s&amp;square=39"`)
	v.wants(node+"/quiet", http.StatusOK, "n1 has answered", "<code>n1.www.peerage.test:8443</code>")
	v.head.Set("Accept", "text/html,*/*;q=0.8")
	v.wants(site+"/whoami", http.StatusOK, "<pre>bank:              n1\n")
	v.wants(site+"/slow?for=0s", http.StatusOK, "<h1>n1 held this request for 0s</h1>", `href="/"`)
	v.wants(site+"/banking/slow?for=0s", http.StatusOK, `href="/banking/"`)
	v.head.Set("Accept", "image/avif,image/svg+xml,*/*;q=0.8")
	if resp, body := v.get(site + "/slow?for=0s"); resp.Header.Get("Content-Type") != "image/svg+xml" || !strings.Contains(body, ">n1</text>") {
		t.Errorf("to an image: got %s %q, want a drawing of n1", resp.Header.Get("Content-Type"), body)
	}
}

func TestOtherPathsAndMethods(t *testing.T) {
	b := New(Config{Name: "n1"})
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"HEAD", "/", http.StatusOK},
		{"GET", "/healthz", http.StatusOK},
		{"GET", "/banking", http.StatusTemporaryRedirect},
		{"GET", "/nowhere", http.StatusNotFound},
		{"GET", "/banking/nowhere", http.StatusNotFound},
		{"POST", "/banking/", http.StatusMethodNotAllowed},
		{"DELETE", "/", http.StatusMethodNotAllowed},
	} {
		w := httptest.NewRecorder()
		b.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
		if w.Code != tt.status {
			t.Errorf("%s %s: got status %d, want %d", tt.method, tt.path, w.Code, tt.status)
		}
	}
}

func TestStaticHoldsWhatThePagesReferTo(t *testing.T) {
	_, page := newVisitor(t, New(Config{Name: "n1"})).get(site + "/")
	refs := regexp.MustCompile(`(?:href|src)="/(static/[^"]*)"`).FindAllStringSubmatch(page, -1)
	if len(refs) < 2 {
		t.Errorf("the start page refers to %v, want a style sheet and a drawing", refs)
	}
	for _, ref := range refs {
		b, err := fs.ReadFile(Static, ref[1])
		if err != nil {
			t.Error(err)
		}
		if !strings.HasSuffix(ref[1], ".svg") {
			continue
		}
		for d := xml.NewDecoder(strings.NewReader(string(b))); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", ref[1], err)
			}
		}
	}
}
