package mapping

import "net/netip"

// What is here is for name servers: what a name is to lead to.

// Reach is the IPv6 address that a name may lead IPv6 clients to for an IPv4
// address: that of its map, else the one under pref64. ok is false where no
// packet would get there, and for addresses of pools and natless's own: anybody
// can write such an address into a zone of theirs, and would have a client's
// browser talk to its neighbours (DNS rebinding).
func (t *Table) Reach(a netip.Addr) (v6 netip.Addr, ok bool) {
	s := t.current.Load()
	e, _ := s.v4.Lookup(a)
	switch {
	case e != nil && e.kind == kindMap:
		v6 = e.to6(a)
		return v6, s.maps6(e, v6)
	case e != nil || !t.pref64.IsValid():
		return netip.Addr{}, false
	}
	return t.pref64.Embed(a), true
}

// Behind is the IPv4 address that an IPv6 one stands for by pref64 or by a map;
// rule says by which.
func (t *Table) Behind(a netip.Addr) (v4 netip.Addr, rule Rule, ok bool) {
	s := t.current.Load()
	if e, _ := s.v6.Lookup(a); e != nil && e.kind == kindMap {
		if v4 = e.to4(a); s.maps4(e, v4) {
			return v4, RuleMap, true
		}
	}
	if v4, ok = t.pref64.Extract(a); ok {
		return v4, RulePref64, true
	}
	return netip.Addr{}, RuleUnmapped, false
}

// Pref64 is the prefix that IPv4 stands behind; not valid if there is none.
func (t *Table) Pref64() Prefix64 { return t.pref64 }

// Permits reports whether an IPv6 source may use natless: it has a map or a
// lease, or is among the clients of a pool.
func (t *Table) Permits(a netip.Addr) bool {
	s := t.current.Load()
	if e, _ := s.v6.Lookup(a); e != nil {
		return e.leased() || e.kind == kindMap && s.maps4(e, e.to4(a))
	}
	return s.permits(a)
}
