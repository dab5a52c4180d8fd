package revision

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"peerage/balancing/cluster"
)

// made returns a revision as node signs it.
func made(node string, number int, parent ID, text string, stamp cluster.Stamp) (ID, *record) {
	r := &record{V: version, Number: number, Parent: parent, Author: "alice@" + node, Made: stamp, Signer: node}
	sum := r.sum("example", text)
	r.put(text)
	r.Signature = ed25519.Sign(keyOf(node), signed(sum))
	return idOf(sum), r
}

func TestCheckRefuses(t *testing.T) {
	good := func(key string, value any) error { return check("example", verify, key, encode(value)) }
	text := strings.Repeat("line\n", 1000)
	id, r := made("n1", 2, ID(strings.Repeat("0a", 16)), text, 7)
	if err := good(revKey(id), r); err != nil {
		t.Fatal(err)
	}
	if len(r.Packed) == 0 || len(r.Packed) > 200 || r.Text != "" {
		t.Errorf("packed into %d octets", len(r.Packed))
	}
	if err := check("other", verify, revKey(id), encode(r)); err == nil {
		t.Error("a revision of another site")
	}
	for name, spoil := range map[string]func(r *record){
		"another text":         func(r *record) { r.put(text + "x") },
		"another number":       func(r *record) { r.Number = 3 },
		"no number":            func(r *record) { r.Number = 0 },
		"another parent":       func(r *record) { r.Parent = "" },
		"a parent that is odd": func(r *record) { r.Parent = "x" },
		"another author":       func(r *record) { r.Author = "bob" },
		"another comment":      func(r *record) { r.Comment = "x" },
		"another time":         func(r *record) { r.Made++ },
		"time to confirm":      func(r *record) { r.ConfirmWithin = 1000 },
		"another signer":       func(r *record) { r.Signer = "n2" },
		"an unknown signer": func(r *record) {
			r.Signer = "x1"
			r.Signature = ed25519.Sign(keyOf("x1"), signed(r.sum("example", text)))
		},
		"a wrong signature": func(r *record) { r.Signature = append([]byte{r.Signature[0] ^ 1}, r.Signature[1:]...) },
		"no signature":      func(r *record) { r.Signature = nil },
		"two texts":         func(r *record) { r.Text = text },
		"a spoilt text":     func(r *record) { r.Packed = []byte{1, 2, 3} },
		"an old version":    func(r *record) { r.V = 0 },
	} {
		bad := *r
		spoil(&bad)
		if err := good(revKey(id), bad); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for _, c := range []struct{ key, value, want string }{
		{"rev/" + string(id), "{", "not a revision"},
		{"rev/" + string(id), `{"v":2,"number":2,"signer":"n1","signature":"AAAA"}`, "no node of the site has signed it"},
		{"rev/" + string(id), `{"v":2,"number":9223372036854775807}`, "not a revision"},
		{"rev/x", "{}", "not a key"},
		{"rev/" + string(id) + "/more", "{}", "not a key"},
		{"phase/" + string(id), "{}", "not a key"},
		{"phase/" + string(id) + "/all", "[]", "not what"},
		{"phase/" + string(id) + "/all", `{"reason":"` + strings.Repeat("x", 4*maxSays) + `"}`, "the most is"},
		{"node/" + string(id) + "/N1", "{}", "not the name"},
		{"node/" + string(id) + "/n1", "7", "not what"},
		{"later", strings.Repeat("x", 4*maxSays+1), "the most is"},
	} {
		if err := check("example", verify, c.key, []byte(c.value)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %.20q: got %v, want %q", c.key, c.value, err, c.want)
		}
	}
}

// TestUnpackingIsBounded has a small value claim a very long text.
func TestUnpackingIsBounded(t *testing.T) {
	id, r := made("n1", 2, "", strings.Repeat("x", 8<<20), 7)
	if len(r.Packed) > 1<<20 {
		t.Fatal(len(r.Packed))
	}
	if err := check("example", verify, revKey(id), encode(r)); err == nil {
		t.Error("taken")
	}
}

// TestALaterVersionIsKeptAsItIs has the table hold what only later software understands.
func TestALaterVersionIsKeptAsItIs(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, net *network) {
		n1, head := net.nodes["n1"], net.nodes["n1"].agent.Head()
		sum := sha256.Sum256([]byte("later"))
		id := idOf(sum)
		values := map[string]string{
			"rev/" + string(id): `{"v":2,"number":2,"parent":"` + string(head.ID) + `","made":77,"wasm":"AAEC","signer":"n1","signature":"` +
				base64.StdEncoding.EncodeToString(ed25519.Sign(keyOf("n1"), signedLater(2, id))) + `"}`,
			"phase/" + string(id) + "/all": `{"who":"n9","when":77,"mood":"good"}`,
			"phase/" + string(id) + "/x":   `{"y":1}`,
			"audit/1":                      `[1,2]`,
		}
		for key, value := range values {
			if err := n1.table.Put(key, []byte(value), time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		for name, n := range net.nodes {
			for key, value := range values {
				if i, ok := n.table.Get(key); !ok || string(i.Value) != value {
					t.Errorf("%s: %s is %q", name, key, i.Value)
				}
			}
			s := n.agent.Status()
			if n.serving() != firstText || s.Head.ID != id || s.Running != head.ID || !strings.Contains(s.Trouble, "too old") {
				t.Errorf("%s: serves %q, status %+v", name, n.serving(), s)
			}
			if _, err := json.Marshal(s); err != nil {
				t.Error(err)
			}
		}
		if _, err := net.apply("n2", "x", Options{}); err == nil || !strings.Contains(err.Error(), "too old") {
			t.Errorf("got %v", err)
		}
	})
}

// FuzzValues checks that no value of the table does harm, and that what is taken is what
// it was.
func FuzzValues(f *testing.F) {
	id, r := made("n1", 2, "", strings.Repeat("line\n", 1000), 7)
	f.Add(revKey(id), encode(r))
	id, r = made("n2", 1, "", "short", 7)
	f.Add(revKey(id), encode(r))
	f.Add(phaseKey(id, phaseCanary), encode(phase{Who: "n1", When: 1 << 40, Deadline: 1 << 41, Canary: "n2"}))
	f.Add(nodeKey(id, "n1"), encode(word{Vote: no, Problems: "x", Failed: 5, Why: "y", Saw: []sight{{"n2", 7}}}))
	f.Add(revKey(id), []byte(`{"v":2,"number":9223372036854775807}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		err := check("example", verify, key, value)
		items := []cluster.Item{{Key: key, Value: value}}
		if strings.HasPrefix(key, phasePrefix) || strings.HasPrefix(key, nodePrefix) { // of a revision that is there
			if _, id, _, err := splitKey(key); err == nil {
				_, r := made("n1", 1, "", "x", 1)
				items = append(items, cluster.Item{Key: revKey(id), Value: encode(r)})
			}
		}
		h := newReader("example").read(items)
		now := time.Unix(1e9, 0)
		h.list(now)
		h.pending(now)
		h.excess()
		h.nodes(h.head(now))
		if e := h.effective("n1", now); e != nil && err == nil {
			e.revision()
		}
		if strings.HasPrefix(key, revPrefix) && err == nil {
			_, id, _, _ := splitKey(key)
			e := h.entries[id]
			if text, err := e.text(); e.understood() && (err != nil || idOf(e.sum("example", text)) != id) {
				t.Errorf("taken, and something else: %v", err)
			}
		}
	})
}
