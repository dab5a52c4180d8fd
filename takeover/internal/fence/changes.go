package fence

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// ruleChanges returns what gives t its sets, chains and rules, nothing if it has them. With
// anew it replaces the rules though they look right. What is right stays where it is: a
// packet meets the old rules or the new ones, never none.
func (t table) ruleChanges(have state, anew bool) []message {
	if !anew && t.complete(have) {
		return nil
	}
	msgs := []message{t.add()}
	for _, s := range t.sets {
		msgs = append(msgs, t.addSet(s))
	}
	msgs = append(msgs, t.flush())
	left := maps.Clone(have.chains)
	for _, c := range t.chains {
		if left[c.name].place == c.place {
			delete(left, c.name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(left)) {
		msgs = append(msgs, t.chainMessage(unix.NFT_MSG_DELCHAIN, 0, name, nil))
	}
	for _, c := range t.chains {
		msgs = append(msgs, t.addChain(c))
	}
	for _, c := range t.chains {
		for _, r := range c.rules {
			msgs = append(msgs, t.addRule(c.name, r))
		}
	}
	return msgs
}

// complete reports whether nothing of t was removed.
func (t table) complete(have state) bool {
	for _, c := range t.chains {
		if h, ok := have.chains[c.name]; !ok || h.place != c.place || h.rules != len(c.rules) {
			return false
		}
	}
	return len(have.chains) == len(t.chains) && len(have.vips) == 2
}

// vipChanges returns what makes the sets of VIPs equal to vips.
func (t table) vipChanges(have state, vips keySets) []message {
	var msgs []message
	for _, set := range []string{vips4, vips6} {
		msgs = append(msgs, t.elements(unix.NFT_MSG_NEWSETELEM, set, missing(vips[set], have.vips[set]))...)
		msgs = append(msgs, t.elements(unix.NFT_MSG_DELSETELEM, set, missing(have.vips[set], vips[set]))...)
	}
	return msgs
}

// missing returns the keys of a that b lacks, in order.
func missing(a, b map[string]bool) []string {
	var keys []string
	for k := range a {
		if !b[k] {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// elementsPerMessage keeps a list below the 64 KiB of an attribute.
const elementsPerMessage = 1024

func (t table) elements(kind uint16, set string, keys []string) []message {
	var msgs []message
	for chunk := range slices.Chunk(keys, elementsPerMessage) {
		var list attrs
		for _, k := range chunk {
			list = list.nest(unix.NFTA_LIST_ELEM, attrs(nil).nest(unix.NFTA_SET_ELEM_KEY, value([]byte(k))))
		}
		body := attrs(nil).text(unix.NFTA_SET_ELEM_LIST_TABLE, t.name).text(unix.NFTA_SET_ELEM_LIST_SET, set).
			nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)
		msgs = append(msgs, message{kind: kind, flags: unix.NLM_F_CREATE, body: body})
	}
	return msgs
}

// emptied returns what takes all elements from a set.
func (t table) emptied(set string) message {
	return message{
		kind: unix.NFT_MSG_DELSETELEM,
		body: attrs(nil).text(unix.NFTA_SET_ELEM_LIST_TABLE, t.name).text(unix.NFTA_SET_ELEM_LIST_SET, set),
	}
}

// add does nothing if the table is there.
func (t table) add() message {
	return message{
		kind: unix.NFT_MSG_NEWTABLE, flags: unix.NLM_F_CREATE,
		body: attrs(nil).text(unix.NFTA_TABLE_NAME, t.name).u32(unix.NFTA_TABLE_FLAGS, t.flags),
	}
}

func (t table) delete() message {
	return message{kind: unix.NFT_MSG_DELTABLE, body: attrs(nil).text(unix.NFTA_TABLE_NAME, t.name)}
}

// addSet does nothing if the set is there.
func (t table) addSet(s set) message {
	body := attrs(nil).text(unix.NFTA_SET_TABLE, t.name).text(unix.NFTA_SET_NAME, s.name).
		u32(unix.NFTA_SET_FLAGS, s.flags).u32(unix.NFTA_SET_KEY_TYPE, s.kind).u32(unix.NFTA_SET_KEY_LEN, s.octets).
		u32(unix.NFTA_SET_ID, s.kind)
	return message{kind: unix.NFT_MSG_NEWSET, flags: unix.NLM_F_CREATE, body: body}
}

// addChain does nothing if the chain is there, in its place.
func (t table) addChain(c chain) message {
	if c.device == "" {
		return t.chainMessage(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, c.name, nil)
	}
	hook := attrs(nil).u32(unix.NFTA_HOOK_HOOKNUM, c.hook).u32(unix.NFTA_HOOK_PRIORITY, uint32(c.priority)).
		text(unix.NFTA_HOOK_DEV, c.device)
	return t.chainMessage(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, c.name,
		attrs(nil).nest(unix.NFTA_CHAIN_HOOK, hook).text(unix.NFTA_CHAIN_TYPE, "filter"))
}

func (t table) chainMessage(kind, flags uint16, name string, more attrs) message {
	body := attrs(nil).text(unix.NFTA_CHAIN_TABLE, t.name).text(unix.NFTA_CHAIN_NAME, name)
	return message{kind: kind, flags: flags, body: append(body, more...)}
}

func (t table) addRule(chain string, r rule) message {
	body := attrs(nil).text(unix.NFTA_RULE_TABLE, t.name).text(unix.NFTA_RULE_CHAIN, chain).
		nest(unix.NFTA_RULE_EXPRESSIONS, attrs(r))
	return message{kind: unix.NFT_MSG_NEWRULE, flags: unix.NLM_F_CREATE | unix.NLM_F_APPEND, body: body}
}

// flush returns what takes the rules from all chains.
func (t table) flush() message {
	return message{kind: unix.NFT_MSG_DELRULE, body: attrs(nil).text(unix.NFTA_RULE_TABLE, t.name)}
}
