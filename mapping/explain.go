package mapping

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/natless/natless/translate"
)

// What this file returns is for people and scripts: the JSON names are stable.

// Rule is the rule that decides about an address.
type Rule string

// The rules, in the words of listings.
const (
	RulePref64   Rule = "pref64"
	RuleMap      Rule = "map"
	RuleLease    Rule = "lease"
	RulePool     Rule = "pool" // of a pool or a permitted client, but not lent
	RuleOwn      Rule = "own"
	RuleRefused  Rule = "refused"
	RuleUnmapped Rule = "unmapped"
)

// Explanation says what an address means and why.
type Explanation struct {
	Address netip.Addr `json:"address"`
	Other   netip.Addr `json:"other,omitzero"` // its counterpart in the other family
	Rule    Rule       `json:"rule"`
	Detail  string     `json:"detail"`            // the rule in words
	Verdict string     `json:"verdict,omitempty"` // of packets that it stops
	Map     *MapInfo   `json:"map,omitempty"`
	Lease   *Lease     `json:"lease,omitempty"`
	Pool    string     `json:"pool,omitempty"` // the pool's prefix
	Origin  string     `json:"origin,omitempty"`
}

// MapInfo is an explicit mapping.
type MapInfo struct {
	IPv4   netip.Prefix `json:"ipv4"`
	IPv6   netip.Prefix `json:"ipv6"`
	Label  string       `json:"label,omitempty"`
	Origin string       `json:"origin,omitempty"`

	Runtime bool `json:"runtime,omitempty"` // added while running, and removable so
}

// Lease is an address lent to a client.
type Lease struct {
	IPv4  netip.Addr   `json:"ipv4"`
	IPv6  netip.Addr   `json:"ipv6"`
	Pool  netip.Prefix `json:"pool"`
	Since time.Time    `json:"since"`
	Idle  uint32       `json:"idle_seconds"` // since the last packet, to about two seconds

	Ports        string `json:"ports,omitempty"`         // "FIRST-LAST", if clients share the IPv4 address
	SessionPorts int    `json:"session_ports,omitempty"` // the last of them, for sessions only

	Proven bool   `json:"proven"` // something came back for the client, or it was attached
	Label  string `json:"label,omitempty"`
	Pinned bool   `json:"pinned,omitempty"` // by an attachment: the lease stays until that goes
}

// PoolInfo is a pool and how full it is.
type PoolInfo struct {
	IPv4        netip.Prefix   `json:"ipv4"`
	Clients     []netip.Prefix `json:"clients"`
	Local       bool           `json:"local"`
	PerAddress  uint32         `json:"clients_per_address,omitempty"` // who share one; what follows then counts their ranges
	Size        uint32         `json:"size"`                          // addresses
	Usable      uint32         `json:"usable"`                        // of them that can be lent at all
	Lent        uint32         `json:"lent"`
	Quarantined uint32         `json:"quarantined"` // returned, and for now only for their former clients
	Free        uint32         `json:"free"`
	Idle        uint32         `json:"idle_seconds"`
	MaxLife     uint32         `json:"max_life_seconds"`
	Quarantine  uint32         `json:"quarantine_seconds"`
	Origin      string         `json:"origin,omitempty"`
}

// Maps lists the explicit mappings by their IPv4 side.
func (t *Table) Maps() []MapInfo {
	_, maps := t.MapsAt()
	return slices.AppendSeq([]MapInfo{}, maps)
}

// MapsAt is Maps for very many of them, with the revision that it shows.
func (t *Table) MapsAt() (revision uint64, maps iter.Seq[MapInfo]) {
	s := t.current.Load()
	return s.revision, func(yield func(MapInfo) bool) {
		for _, e := range s.v4.AllSorted4() {
			if e.kind == kindMap && !yield(MapInfo(*e.of.(*Map))) {
				return
			}
		}
	}
}

// Leases lists what is lent, by IPv4 address.
func (t *Table) Leases() []Lease {
	_, leases := t.LeasesAt()
	return slices.AppendSeq([]Lease{}, leases)
}

// LeasesAt is Leases for very many of them, with the revision that it shows.
func (t *Table) LeasesAt() (revision uint64, leases iter.Seq[Lease]) {
	s := t.current.Load()
	return s.revision, func(yield func(Lease) bool) {
		for l := range s.leases() {
			if !yield(t.leaseInfo(&l.entry)) {
				return
			}
		}
	}
}

// leases are all leases, by IPv4 address and ports.
func (s *snapshot) leases() iter.Seq[*lease] {
	return func(yield func(*lease) bool) {
		for _, e := range s.v4.AllSorted4() {
			if !e.leases(yield) {
				return
			}
		}
	}
}

func (t *Table) leaseInfo(e *entry) Lease {
	l := e.of.(*lease)
	idle := uint32(max(0, int32(t.tick.Load()-e.stamp.Load())))
	info := Lease{
		IPv4: l.v4, IPv6: l.v6, Pool: l.pool.Load().IPv4, Since: l.since, Idle: idle,
		Proven: l.proven.Load(), Label: l.labelled(), Pinned: l.pinned.Load(),
	}
	if r := l.ports; r != nil {
		info.Ports, info.SessionPorts = l.saved(time.Time{}).Ports(), int(r.Last-r.Session)+1
	}
	return info
}

// Network is a /64 and how many of its addresses have a lease.
type Network struct {
	Prefix netip.Prefix `json:"prefix"`
	Leases int          `json:"leases"`
}

// Networks lists the /64s with the most leases, the most first, at most 16.
func (t *Table) Networks() []Network {
	const most = 16
	t.mu.Lock()
	defer t.mu.Unlock()
	list := []Network{}
	for hi, n := range t.networks {
		if len(list) == most && n <= list[most-1].Leases {
			continue
		}
		list = append(list, Network{netip.PrefixFrom(addr6(hi, 0), 64), n})
		slices.SortFunc(list, func(a, b Network) int {
			return cmp.Or(b.Leases-a.Leases, a.Prefix.Compare(b.Prefix))
		})
		list = list[:min(most, len(list))]
	}
	return list
}

// Pools lists the pools in the order they are tried.
func (t *Table) Pools() []PoolInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := []PoolInfo{}
	s := t.current.Load()
	for _, p := range s.pools {
		quarantined := p.quarantined(s.v4, t.tick.Load())
		var perAddress uint32
		if p.Ports != (Ports{}) {
			perAddress = p.per
		}
		list = append(list, PoolInfo{
			IPv4: p.IPv4, Clients: append([]netip.Prefix{}, p.Clients...), Local: p.Local,
			PerAddress: perAddress,
			Size:       p.size, Usable: p.usable, Lent: p.lent, Quarantined: quarantined, Free: p.usable - p.lent - quarantined,
			Idle: ticks(p.Idle), MaxLife: ticks(p.MaxLife), Quarantine: ticks(p.Quarantine),
			Origin: p.Origin,
		})
	}
	return list
}

// Explain says what a means: its counterpart, and the rule that decides. It
// changes nothing. a is an address as packets carry it, of either family.
func (t *Table) Explain(a netip.Addr) Explanation {
	s := t.current.Load()
	switch {
	case !a.IsValid():
		return Explanation{}.unmapped("not an address", translate.NotIP)
	case a.Is4():
		return t.explain4(s, a)
	}
	return t.explain6(s, a.WithZone(""))
}

func (t *Table) explain4(s *snapshot, a netip.Addr) Explanation {
	e, _ := s.v4.Lookup(a)
	if e != nil && e.kind != kindPrivate {
		return t.explainEntry(e, a, e.to6, translate.DestinationRefused)
	}
	x := Explanation{Address: a}
	switch {
	case !t.pref64.IsValid():
		return x.unmapped("no map covers it, and there is no pref64", translate.DestinationUnmapped)
	case e != nil:
		x.Rule = RuleRefused
		x.Verdict = translate.PrivateIPv4.String()
		x.Detail = fmt.Sprintf("a private address, which must not stand behind pref64 %v", t.pref64.prefix)
		return x
	}
	x.Rule = RulePref64
	x.Other = t.pref64.Embed(a)
	x.Detail = fmt.Sprintf("behind pref64 %v", t.pref64.prefix)
	return x
}

func (t *Table) explain6(s *snapshot, a netip.Addr) Explanation {
	if v4, ok := t.pref64.Extract(a); ok {
		return t.explainPref64(s, a, v4)
	}
	e, _ := s.v6.Lookup(a)
	if e != nil {
		return t.explainEntry(e, a, e.to4, translate.SourceRefused)
	}
	x := Explanation{Address: a}
	for _, p := range s.pools {
		if p.permits(a) {
			x.Rule, x.Pool, x.Origin = RulePool, p.IPv4.String(), p.Origin
			what := "an address"
			if p.Ports != (Ports{}) {
				what = fmt.Sprintf("%d ports of an address", p.Ports.PerClient)
			}
			x.Detail = fmt.Sprintf("a client of %v; its first packet leases %s", &p.Pool, what)
			return x
		}
	}
	if len(s.pools) == 0 {
		return x.unmapped("no map covers it, and there is no pool", translate.SourceUnmapped)
	}
	return x.unmapped("no map covers it, and no pool's clients permit it", translate.ClientNotPermitted)
}

// explainPref64 explains an address under pref64 that means v4.
func (t *Table) explainPref64(s *snapshot, a, v4 netip.Addr) Explanation {
	x := Explanation{Address: a, Other: v4, Rule: RulePref64, Detail: fmt.Sprintf("%v under pref64 %v", v4, t.pref64.prefix)}
	e, _ := s.v4.Lookup(v4)
	if e == nil {
		return x
	}
	behind := t.explain4(s, v4)
	x.Detail += ": " + behind.Detail
	x.Map, x.Lease, x.Pool, x.Origin = behind.Map, behind.Lease, behind.Pool, behind.Origin
	switch v := e.verdict4(s.hairpin); {
	case v == translate.OwnAddress:
		x.Rule = RuleOwn
	case v == translate.Hairpin && s.guarded:
		x.Detail += "; reached by hairpin from where this host would let packets to it pass"
	case v == translate.Hairpin:
		x.Detail += "; reached by hairpin"
	case !v.Leaves():
		x.Verdict = v.String()
	}
	if e.kind > kindPref64 {
		x.Rule = RuleRefused
	}
	return x
}

// explainEntry explains an address by its entry in the table.
func (t *Table) explainEntry(e *entry, a netip.Addr, other func(netip.Addr) netip.Addr, refused translate.Verdict) Explanation {
	x := Explanation{Address: a}
	switch of := e.of.(type) {
	case *Map:
		info := MapInfo(*of)
		x.Rule, x.Other, x.Map, x.Origin, x.Detail = RuleMap, other(a), &info, of.Origin, of.String()+labelled(info.Label)
		return x
	case *lease:
		info := t.leaseInfo(e)
		p := &of.pool.Load().Pool
		x.Rule, x.Other, x.Lease, x.Pool, x.Origin = RuleLease, other(a), &info, info.Pool.String(), p.Origin
		x.Detail = fmt.Sprintf("leased from %v to %v since %s, idle for %v",
			p, info.IPv6, info.Since.Format(time.RFC3339), time.Duration(info.Idle)*time.Second)
		if info.Ports != "" {
			x.Detail += fmt.Sprintf(", ports %s, of which the last %d are for sessions", info.Ports, info.SessionPorts)
		}
		x.Detail += labelled(info.Label)
		if info.Pinned {
			x.Detail += ", pinned by an attachment"
		}
		if !info.Proven {
			x.Detail += ", nothing has come back for it yet"
		}
		return x
	case *pool:
		x.Rule, x.Pool, x.Origin, x.Verdict = RulePool, of.IPv4.String(), of.Origin, translate.DestinationUnmapped.String()
		x.Detail = fmt.Sprintf("an address of %v, not lent", &of.Pool)
		return x
	case *shared:
		p := of.pool
		x.Rule, x.Pool, x.Origin = RulePool, p.IPv4.String(), p.Origin
		x.Detail = fmt.Sprintf("an address of %v that clients share by port: %d of its %d ranges are lent; natless answers ping", &p.Pool, of.lent, p.per)
		return x
	}
	switch e.kind {
	case kindOwn:
		x.Rule, x.Detail = RuleOwn, "an address of natless itself: it answers ping"
	case kindPref64:
		x.Rule, x.Verdict = RuleUnmapped, translate.DestinationUnmapped.String()
		x.Detail = fmt.Sprintf("under pref64 %v, but bits 64 to 71 are not zero (RFC 6052 2.2)", t.pref64.prefix)
	default:
		x.Rule, x.Verdict = RuleRefused, refused.String()
		x.Detail = fmt.Sprintf("a %s address, refused unless a map or a pool says otherwise", e.of)
	}
	return x
}

// labelled is what an explanation says of a label.
func labelled(label string) string {
	if label == "" {
		return ""
	}
	return fmt.Sprintf(", labelled %q", label)
}

func (x Explanation) unmapped(why string, v translate.Verdict) Explanation {
	x.Rule, x.Detail, x.Verdict = RuleUnmapped, why, v.String()
	return x
}
