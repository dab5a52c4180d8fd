package fence

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// A rule is the list of its expressions, which nf_tables carries out in turn until one
// does not match. All of them use the one register.
type rule attrs

const register = unix.NFT_REG_1

// newRule joins expressions into a rule.
func newRule(exprs ...attrs) rule {
	var list attrs
	for _, e := range exprs {
		list = append(list, e...)
	}
	return rule(list)
}

func expression(name string, data attrs) attrs {
	return attrs(nil).nest(unix.NFTA_LIST_ELEM, attrs(nil).text(unix.NFTA_EXPR_NAME, name).nest(unix.NFTA_EXPR_DATA, data))
}

// meta loads what the kernel knows of a packet, an NFT_META.
func meta(key uint32) attrs {
	return expression("meta", attrs(nil).u32(unix.NFTA_META_KEY, key).u32(unix.NFTA_META_DREG, register))
}

// setMark makes the register the packet's mark.
func setMark() attrs {
	return expression("meta", attrs(nil).u32(unix.NFTA_META_KEY, unix.NFT_META_MARK).u32(unix.NFTA_META_SREG, register))
}

// payload loads bytes of a packet. A packet that is too short does not match.
func payload(base, offset, length uint32) attrs {
	return expression("payload", attrs(nil).u32(unix.NFTA_PAYLOAD_DREG, register).
		u32(unix.NFTA_PAYLOAD_BASE, base).u32(unix.NFTA_PAYLOAD_OFFSET, offset).u32(unix.NFTA_PAYLOAD_LEN, length))
}

func network(offset, length uint32) attrs {
	return payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, length)
}

func transport(offset, length uint32) attrs {
	return payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, offset, length)
}

// equals matches if the register holds data.
func equals(data ...byte) attrs {
	return expression("cmp", attrs(nil).u32(unix.NFTA_CMP_SREG, register).u32(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ).
		nest(unix.NFTA_CMP_DATA, value(data)))
}

// change makes the register (register & mask) ^ flip, of host byte order.
func change(mask, flip uint32) attrs {
	return expression("bitwise", attrs(nil).u32(unix.NFTA_BITWISE_SREG, register).u32(unix.NFTA_BITWISE_DREG, register).
		u32(unix.NFTA_BITWISE_LEN, 4).
		nest(unix.NFTA_BITWISE_MASK, value(native(mask))).nest(unix.NFTA_BITWISE_XOR, value(native(flip))))
}

// within matches if the set has the register.
func within(set string) attrs { return lookup(set, 0) }

// without matches if the set does not have the register.
func without(set string) attrs { return lookup(set, unix.NFT_LOOKUP_F_INV) }

func lookup(set string, flags uint32) attrs {
	return expression("lookup", attrs(nil).text(unix.NFTA_LOOKUP_SET, set).u32(unix.NFTA_LOOKUP_SREG, register).
		u32(unix.NFTA_LOOKUP_FLAGS, flags))
}

// renew puts the register into the set, or there anew, for the timeout.
func renew(set string, timeout time.Duration) attrs {
	return expression("dynset", attrs(nil).text(unix.NFTA_DYNSET_SET_NAME, set).u32(unix.NFTA_DYNSET_SREG_KEY, register).
		u32(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_UPDATE).u64(unix.NFTA_DYNSET_TIMEOUT, uint64(timeout.Milliseconds())))
}

// verdict ends the chain. NFT_GOTO names the chain that goes on in its place.
func verdict(code int32, chain string) attrs {
	v := attrs(nil).u32(unix.NFTA_VERDICT_CODE, uint32(code))
	if chain != "" {
		v = v.text(unix.NFTA_VERDICT_CHAIN, chain)
	}
	return expression("immediate", attrs(nil).u32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT).
		nest(unix.NFTA_IMMEDIATE_DATA, attrs(nil).nest(unix.NFTA_DATA_VERDICT, v)))
}

func value(data []byte) attrs { return attrs(nil).bytes(unix.NFTA_DATA_VALUE, data) }

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
