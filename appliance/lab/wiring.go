package lab

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// wiring says where the cables of one network end.
type wiring struct {
	network  string
	switches []string        // those in use, the first always
	ports    map[string]spot // by the name of the plug
	trunk    string          // the switch that the side switch is connected to; "" without one
}

// spot is where a cable ends.
type spot struct {
	bridge  string // the switch; "" for none
	pulled  bool   // no carrier
	private bool   // nothing passes to and from other private ports of that switch
}

// layOut says how to wire a network so that it has the faults.
//
// A machine that is cut off from the router is on a side switch. Of the cable between that
// one and the main switch, and of the router's, both ends at the main switch are private:
// so nothing passes between the router and the side switch, and everything else does.
func layOut(network string, machines []*Machine, f *faults) *wiring {
	w := &wiring{network: network, switches: []string{network}, ports: map[string]spot{}}
	group := map[string]string{}
	for i, g := range f.groups {
		for _, name := range g {
			group[name] = fmt.Sprintf("%s-%d", network, i+2)
		}
	}
	bridgeOf := func(name string) string {
		if b, ok := group[name]; ok {
			return b
		}
		return network
	}
	for _, m := range machines {
		p := m.port(network)
		if p == nil {
			continue
		}
		at := spot{bridge: bridgeOf(m.Name)}
		switch f.cuts[m.Name][network] {
		case Cable:
			at.pulled = true
		case Switch:
			at.bridge = ""
		case Router:
			if at.bridge == bridgeOf(router) { // else they are apart already
				w.trunk, at.bridge = at.bridge, w.side()
			}
		}
		w.ports[p.plug] = at
	}
	if w.trunk != "" {
		for _, m := range machines {
			if p := m.port(network); p != nil && m.Name == router && w.ports[p.plug].bridge != "" {
				at := w.ports[p.plug]
				at.private = true
				w.ports[p.plug] = at
			}
		}
		w.switches = append(w.switches, w.side(), w.trunk)
	}
	for _, at := range w.ports {
		if at.bridge != "" {
			w.switches = append(w.switches, at.bridge)
		}
	}
	slices.Sort(w.switches)
	w.switches = slices.Compact(w.switches)
	return w
}

// side is the name of the side switch.
func (w *wiring) side() string { return w.network + "-s" }

// match wires the network, in the namespace of this thread. Every step may be repeated.
func (w *wiring) match() error {
	for _, name := range w.switches {
		if err := ensureSwitch(name); err != nil {
			return fmt.Errorf("switch %s: %w", name, err)
		}
	}
	ports := maps.Clone(w.ports)
	if err := w.layTrunk(ports); err != nil {
		return fmt.Errorf("cable between switches: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(ports)) {
		if err := ports[name].match(name); err != nil {
			return fmt.Errorf("port %s: %w", name, err)
		}
	}
	if err := w.removeOthers(); err != nil {
		return err
	}
	for name, at := range ports {
		if err := at.settle(name); err != nil {
			return fmt.Errorf("port %s: %w", name, err)
		}
	}
	return nil
}

func ensureSwitch(name string) error {
	link, err := netlink.LinkByName(name)
	if isNotFound(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		b := &netlink.Bridge{LinkAttrs: attrs}
		link, err = b, netlink.LinkAdd(b)
	}
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// layTrunk lays the cable to the side switch anew, if there is to be one, and adds its ends
// to the ports. With the old one, the switches forget whom they have reached by it.
func (w *wiring) layTrunk(ports map[string]spot) error {
	main, side := w.network+"-t0", w.network+"-t1"
	link, err := netlink.LinkByName(main)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !isNotFound(err) {
		return err
	}
	if w.trunk == "" {
		return nil
	}
	ports[main], ports[side] = spot{bridge: w.trunk, private: true}, spot{bridge: w.side()}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = main
	return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: side})
}

// match plugs in the cable that ends in the link called name.
func (s spot) match(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if s.bridge == "" {
		err = netlink.LinkSetNoMaster(link)
	} else {
		var bridge netlink.Link
		if bridge, err = netlink.LinkByName(s.bridge); err == nil {
			err = netlink.LinkSetMaster(link, bridge)
		}
		if err == nil {
			err = netlink.LinkSetIsolated(link, s.private)
		}
	}
	if err != nil {
		return err
	}
	if s.pulled {
		return netlink.LinkSetDown(link)
	}
	return netlink.LinkSetUp(link)
}

// settleWithin bounds how long the kernel takes to see that a cable was plugged in.
const settleWithin = 5 * time.Second

// settle waits until a port passes something on, if it is to.
func (s spot) settle(name string) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(settleWithin); s.bridge != "" && !s.pulled; <-tick.C {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			break
		}
		if time.Now().After(deadline) {
			return errors.New("the cable is in, and there is no carrier")
		}
	}
	return nil
}

// removeOthers removes the switches of the network that are not in use.
func (w *wiring) removeOthers() error {
	all, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, link := range all {
		name := link.Attrs().Name
		if link.Type() == "bridge" && strings.HasPrefix(name, w.network) && !slices.Contains(w.switches, name) {
			if err := netlink.LinkDel(link); err != nil {
				return fmt.Errorf("remove switch %s: %w", name, err)
			}
		}
	}
	return nil
}

func isNotFound(err error) bool {
	_, ok := errors.AsType[netlink.LinkNotFoundError](err)
	return ok
}
