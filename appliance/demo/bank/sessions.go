package bank

import (
	"container/list"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// opening is what a new account holds.
const opening cents = 1_000_00

const (
	maxTransfers = 5  // shown and kept
	maxName      = 40 // letters of a payee's name
)

// cents is an amount of money.
type cents int64

func (c cents) String() string { return fmt.Sprintf("%d.%02d", c/100, c%100) }

// MarshalJSON writes a number with two decimals.
func (c cents) MarshalJSON() ([]byte, error) { return []byte(c.String()), nil }

// parseCents reads an amount with a point or comma and at most two decimals.
func parseCents(s string) (cents, bool) {
	whole, part, _ := strings.Cut(strings.Replace(strings.TrimSpace(s), ",", ".", 1), ".")
	if whole == "" || len(part) > 2 {
		return 0, false
	}
	n, err := strconv.ParseUint(whole+(part + "00")[:2], 10, 40)
	return cents(n), err == nil
}

// transfer is money that has gone to somebody.
type transfer struct {
	To     string
	Amount cents
}

// parseTransfer reads the fields of the form. A problem is for people, on the page.
func parseTransfer(to, amount string) (t transfer, problem string) {
	to = strings.TrimSpace(to)
	if n := utf8.RuneCountInString(to); n == 0 || n > maxName || !utf8.ValidString(to) || strings.ContainsFunc(to, unicode.IsControl) {
		return t, fmt.Sprintf("Say who is to get the money, in 1 to %d letters.", maxName)
	}
	c, ok := parseCents(amount)
	if !ok || c == 0 {
		return t, "Say how much, like 12 or 12.50."
	}
	return transfer{to, c}, ""
}

// account is the state of one session. A copy of it stays as it is.
type account struct {
	ID        string // names the session on pages and in logs; it opens nothing
	Balance   cents
	Transfers []transfer // the latest first
}

// sessions are the accounts by their secret tokens, bounded by dropping the oldest.
type sessions struct {
	limit int

	mu     sync.Mutex
	oldest list.List // of *session, the oldest first
	all    map[string]*list.Element
}

type session struct {
	token string
	account
}

func newSessions(limit int) *sessions {
	return &sessions{limit: limit, all: map[string]*list.Element{}}
}

// open begins a session.
func (s *sessions) open() (token string, a account) {
	n := &session{token: rand.Text(), account: account{ID: rand.Text()[:8], Balance: opening}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) >= s.limit {
		delete(s.all, s.oldest.Remove(s.oldest.Front()).(*session).token)
	}
	s.all[n.token] = s.oldest.PushBack(n)
	return n.token, n.account
}

// account returns the account of a session, if it is known.
func (s *sessions) account(token string) (account, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.all[token]
	if e == nil {
		return account{}, false
	}
	return e.Value.(*session).account, true
}

// transfer sends money, if there is enough.
func (s *sessions) transfer(token string, t transfer) (problem string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.all[token]
	if e == nil {
		return "The session has just ended."
	}
	a := &e.Value.(*session).account
	if t.Amount > a.Balance {
		return fmt.Sprintf("There is not enough on the account to send %v.", t.Amount)
	}
	a.Balance -= t.Amount
	all := append([]transfer{t}, a.Transfers...)
	a.Transfers = all[:min(len(all), maxTransfers)]
	return ""
}

// end forgets a session.
func (s *sessions) end(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.all[token]; e != nil {
		s.oldest.Remove(e)
		delete(s.all, token)
	}
}
