package fence

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// try makes the socket of c the owner of a table, empty in the end, and tries there all that
// the fence uses.
func try(c *conn) error {
	t := ownedTable(Config{Device: "lo", Reports: "lo", Mark: 1, Lease: time.Second})
	if err := c.transact([]message{t.add()}); err != nil {
		plain := table{name: "peerage-try"}
		return cannotOwn(err, c.transact([]message{plain.add(), plain.delete()}))
	}
	for _, step := range []struct {
		place place
		lacks string
	}{
		{in("lo", 0), "the ingress hook of nf_tables: a kernel with CONFIG_NETFILTER_INGRESS is needed"},
		{out("lo", 0), "the egress hook of nf_tables: Linux 5.16 or newer with CONFIG_NETFILTER_EGRESS is needed"},
	} {
		hook := t.addChain(chain{name: "try", place: step.place})
		if err := c.transact([]message{hook, t.chainMessage(unix.NFT_MSG_DELCHAIN, 0, "try", nil)}); err != nil {
			return fmt.Errorf("%s: %w", step.lacks, err)
		}
	}
	msgs := t.ruleChanges(state{}, true)
	msgs = append(msgs, t.flush())
	for _, c := range t.chains {
		msgs = append(msgs, t.chainMessage(unix.NFT_MSG_DELCHAIN, 0, c.name, nil))
	}
	if err := c.transact(msgs); err != nil {
		return fmt.Errorf("rules that renew a set of nf_tables: Linux 5.16 or newer with all of CONFIG_NF_TABLES is needed: %w", err)
	}
	return nil
}

// cannotOwn explains why no table could be made that is owned; plain is what came of one
// that is not.
func cannotOwn(err, plain error) error {
	k, ok := errors.AsType[*kernelError](err)
	switch {
	case errors.Is(err, unix.EPERM) && ok && k.index == 0:
		return fmt.Errorf("%w: it needs CAP_NET_ADMIN in the network namespace: run as root, or give the process that", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: another process of this network namespace has it: run one node in each", err)
	case plain != nil:
		return fmt.Errorf("no table of the netdev family: a kernel with CONFIG_NF_TABLES_NETDEV is needed: %w", plain)
	}
	return fmt.Errorf("no table with an owner: Linux 5.12 or newer is needed: %w", err)
}
