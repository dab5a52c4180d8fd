package fence

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// state is what the kernel has of a table.
type state struct {
	chains map[string]placed
	vips   keySets // no entry if there is no such set
}

// placed is a chain that is there.
type placed struct {
	place
	rules int
}

// keySets are the keys of sets, by the set's name.
type keySets map[string]map[string]bool

// read returns what the kernel has of a table, nothing if there is no such table.
func (c *conn) read(name string) (state, error) {
	s := state{chains: make(map[string]placed), vips: make(keySets)}
	err := c.request(message{kind: unix.NFT_MSG_GETCHAIN, flags: unix.NLM_F_DUMP}, func(body []byte) error {
		of, chain, p, err := parseChain(body)
		if of == name {
			s.chains[chain] = p
		}
		return err
	})
	if err != nil {
		return s, err
	}
	which := attrs(nil).text(unix.NFTA_RULE_TABLE, name)
	err = c.request(message{kind: unix.NFT_MSG_GETRULE, flags: unix.NLM_F_DUMP, body: which}, func(body []byte) error {
		of, chain, err := parseRule(body)
		if p, ok := s.chains[chain]; ok && of == name {
			p.rules++
			s.chains[chain] = p
		}
		return err
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return s, err
	}
	for _, set := range []string{vips4, vips6} {
		keys := make(map[string]bool)
		which := attrs(nil).text(unix.NFTA_SET_ELEM_LIST_TABLE, name).text(unix.NFTA_SET_ELEM_LIST_SET, set)
		err := c.request(message{kind: unix.NFT_MSG_GETSETELEM, flags: unix.NLM_F_DUMP, body: which}, func(body []byte) error {
			return parseElements(body, keys)
		})
		switch {
		case err == nil:
			s.vips[set] = keys
		case !errors.Is(err, unix.ENOENT):
			return s, err
		}
	}
	return s, nil
}

// generation changes with every transaction of the namespace, whoever makes it.
func (c *conn) generation() (uint32, error) {
	var id uint32
	err := c.request(message{kind: unix.NFT_MSG_GETGEN}, func(body []byte) error {
		return walk(body, func(kind uint16, value []byte) error {
			if kind == unix.NFTA_GEN_ID && len(value) == 4 {
				id = binary.BigEndian.Uint32(value)
			}
			return nil
		})
	})
	return id, err
}

func parseChain(body []byte) (of, name string, p placed, err error) {
	err = walk(body, func(kind uint16, value []byte) error {
		switch kind {
		case unix.NFTA_CHAIN_TABLE:
			of = text(value)
		case unix.NFTA_CHAIN_NAME:
			name = text(value)
		case unix.NFTA_CHAIN_HOOK:
			return walk(value, func(kind uint16, value []byte) error {
				switch {
				case kind == unix.NFTA_HOOK_DEV:
					p.device = text(value)
				case kind == unix.NFTA_HOOK_HOOKNUM && len(value) == 4:
					p.hook = binary.BigEndian.Uint32(value)
				case kind == unix.NFTA_HOOK_PRIORITY && len(value) == 4:
					p.priority = int32(binary.BigEndian.Uint32(value))
				}
				return nil
			})
		}
		return nil
	})
	return of, name, p, err
}

func parseRule(body []byte) (of, chain string, err error) {
	err = walk(body, func(kind uint16, value []byte) error {
		switch kind {
		case unix.NFTA_RULE_TABLE:
			of = text(value)
		case unix.NFTA_RULE_CHAIN:
			chain = text(value)
		}
		return nil
	})
	return of, chain, err
}

// parseElements adds the keys of a list of elements.
func parseElements(body []byte, keys map[string]bool) error {
	nested := func(want uint16, each func([]byte) error) func(uint16, []byte) error {
		return func(kind uint16, value []byte) error {
			if kind != want {
				return nil
			}
			return each(value)
		}
	}
	key := nested(unix.NFTA_DATA_VALUE, func(b []byte) error { keys[string(b)] = true; return nil })
	element := nested(unix.NFTA_SET_ELEM_KEY, func(b []byte) error { return walk(b, key) })
	list := nested(unix.NFTA_LIST_ELEM, func(b []byte) error { return walk(b, element) })
	return walk(body, nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(b []byte) error { return walk(b, list) }))
}
