package mapping

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/gaissmai/bart"
)

// Config is what a table is made of.
type Config struct {
	Pref64           netip.Prefix     // RFC 6052; the zero value: explicit mappings only
	Maps             []Map            // any order; nested prefixes are legal; never to be changed again
	Pools            []Pool           // tried in order
	OwnIPv4, OwnIPv6 netip.Addr       // natless's own; never lent, never mapped
	RFC6791          []netip.Prefix   // IPv4 stand-ins for unmapped IPv6 routers; none: OwnIPv4
	Hairpin          bool             // clients reach each other by their IPv4 addresses
	Guarded          bool             // only those that SetAround says the host would let meet
	AllowPrivate     bool             // private IPv4 addresses may stand behind Pref64
	Now              func() time.Time // dates leases; nil: time.Now
	Revision         uint64           // the first revision; 0: 1
}

// Map is an explicit mapping (RFC 7757): the IPv4 suffix, what follows the
// prefix, becomes the head of the IPv6 suffix. The IPv6 suffix is at least as
// long as the IPv4 suffix.
//
// The tags are for package config, which reads them.
type Map struct {
	IPv4    netip.Prefix `toml:"ipv4" ip:"4"`
	IPv6    netip.Prefix `toml:"ipv6" ip:"6"`
	Label   string       `toml:"label"`
	Origin  string       // where it was asked for, "FILE:LINE", "flag" or "added TIME by WHO"; named in errors and listings
	Runtime bool         // added while running: it can be removed so too, and Reload keeps it
}

// Pool lends its IPv4 addresses to IPv6 clients, one to one, or ranges of their
// ports. All of its addresses are lent but OwnIPv4 (unless it is the only one of
// a pool that lends ranges: natless shares it with the clients), those that a Map takes out and, in a pool of
// four and more, the first: the one with all host bits zero, which looks like
// the network itself. Nothing is wrong with the last one, since a pool is
// routed and on no link.
type Pool struct {
	IPv4       netip.Prefix
	Clients    []netip.Prefix // who may lease
	Local      bool           // and what SetLocal names
	Idle       time.Duration  // without traffic before a lease ends; 0: never
	MaxLife    time.Duration  // before a lease ends even if used, and the client must take another address; 0: none
	Quarantine time.Duration  // before a returned address or range is lent to another client
	Ports      Ports          // how clients share an address; the zero value: one to one
	Origin     string         // as a Map's
}

// block is a range of addresses that no packet may carry unless a map or a
// pool inside the range says otherwise.
type block struct {
	prefix netip.Prefix
	kind   kind
	name   string
}

var (
	refused4 = []block{
		{netip.MustParsePrefix("0.0.0.0/8"), kindIllegal, "unspecified"},
		{netip.MustParsePrefix("127.0.0.0/8"), kindIllegal, "loopback"},
		{netip.MustParsePrefix("169.254.0.0/16"), kindBeyond, "link-local"},
		{netip.MustParsePrefix("224.0.0.0/4"), kindIllegal, "multicast"},
		{netip.MustParsePrefix("240.0.0.0/4"), kindBeyond, "class E"},
		{netip.MustParsePrefix("255.255.255.255/32"), kindIllegal, "broadcast"},
	}
	refused6 = []block{
		{netip.MustParsePrefix("::/128"), kindIllegal, "unspecified"},
		{netip.MustParsePrefix("::1/128"), kindIllegal, "loopback"},
		{netip.PrefixFrom(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff}), 96), kindIllegal, "v4-mapped"},
		{netip.MustParsePrefix("fe80::/10"), kindBeyond, "link-local"},
		{netip.MustParsePrefix("ff00::/8"), kindIllegal, "multicast"},
	}
	private4 = []block{
		{netip.MustParsePrefix("10.0.0.0/8"), kindPrivate, "private"},
		{netip.MustParsePrefix("172.16.0.0/12"), kindPrivate, "private"},
		{netip.MustParsePrefix("192.168.0.0/16"), kindPrivate, "private"},
		{netip.MustParsePrefix("100.64.0.0/10"), kindPrivate, "private"},
	}
)

// New makes a table. An error names the map or pool at fault, where it was
// asked for, and why it cannot be.
func New(c Config) (*Table, error) {
	t := &Table{
		own4: c.OwnIPv4, own6: c.OwnIPv6, now: c.Now, networks: map[uint64]int{},
		attachments: map[string]Attachment{}, pins: map[netip.Addr]int{}, lending: make(chan struct{}, 1),
	}
	if t.now == nil {
		t.now = time.Now
	}
	t.around.Store(newAround(Around{}))
	if c.Pref64 != (netip.Prefix{}) {
		p, err := ParsePrefix64(c.Pref64)
		if err != nil {
			return nil, err
		}
		t.pref64 = p
	}
	g, err := t.build(c)
	if err != nil {
		return nil, err
	}
	if t.pref64.IsValid() && t.own4.IsValid() {
		t.own64 = t.pref64.Embed(t.own4)
	}
	s := g.snapshot()
	s.revision = max(1, c.Revision)
	t.journal.forgotten = s.revision
	t.current.Store(s)
	return t, nil
}

// build makes a stage of what a configuration says, without leases.
func (t *Table) build(c Config) (*stage, error) {
	g := &stage{
		t: t, policy: &policy{hairpin: c.Hairpin, guarded: c.Guarded, allowPrivate: c.AllowPrivate},
		v4: new(bart.Fast[*entry]), v6: new(bart.Fast[*entry]), counts: new(octetCounts),
		owned: true, counted: true, taken: map[*pool]int64{},
	}
	for _, step := range []func(Config) error{g.blocks, g.maps, g.own, g.addPools, g.standIns} {
		if err := step(c); err != nil {
			return nil, err
		}
	}
	g.settlePrivate(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	return g, nil
}

func (g *stage) blocks(Config) error {
	for _, x := range refused4 {
		g.put4(x.prefix, &entry{kind: x.kind, of: x.name})
	}
	for _, x := range refused6 {
		g.put6(x.prefix, &entry{kind: x.kind, of: x.name})
	}
	if p := g.t.pref64; p.IsValid() {
		g.put6(p.prefix, &entry{kind: kindPref64, of: "pref64"})
	}
	return nil
}

// maps enters the maps, of which there may be a million: they stay where they
// are, and their entries are in one piece of memory.
func (g *stage) maps(c Config) error {
	entries := make([]entry, len(c.Maps))
	for i := range c.Maps {
		m, e := &c.Maps[i], &entries[i]
		if err := m.check(g.t.pref64); err != nil {
			return fmt.Errorf("%v: %w", m, err)
		}
		if err := cmp.Or(g.free4(m), g.free6(m)); err != nil {
			return fmt.Errorf("%v: %w", m, err)
		}
		e.set(kindMap, m.IPv4, m.IPv6, m)
		g.put4(m.IPv4, e)
		g.put6(m.IPv6, e)
	}
	return nil
}

// check holds a map against RFC 7757 3.2 and pref64. A map that overlaps
// pref64 could only make loops: its IPv6 side would be refused as a source and
// as what a destination becomes.
func (m *Map) check(pref64 Prefix64) error {
	switch {
	case !m.IPv4.IsValid() || !m.IPv4.Addr().Is4():
		return fmt.Errorf("%v is not an IPv4 prefix", m.IPv4)
	case !m.IPv6.IsValid() || !m.IPv6.Addr().Is6() || m.IPv6.Addr().Is4In6():
		return fmt.Errorf("%v is not an IPv6 prefix", m.IPv6)
	case m.IPv4 != m.IPv4.Masked():
		return fmt.Errorf("bits behind the prefix are set in %v, expected %v", m.IPv4, m.IPv4.Masked())
	case m.IPv6 != m.IPv6.Masked():
		return fmt.Errorf("bits behind the prefix are set in %v, expected %v", m.IPv6, m.IPv6.Masked())
	case 128-m.IPv6.Bits() < 32-m.IPv4.Bits():
		return fmt.Errorf("%d bits of IPv4 suffix do not fit in %d bits of IPv6 suffix, expected an IPv6 prefix of at most /%d (RFC 7757 3.2)",
			32-m.IPv4.Bits(), 128-m.IPv6.Bits(), 96+m.IPv4.Bits())
	case pref64.IsValid() && pref64.prefix.Overlaps(m.IPv6):
		return conflict("%v overlaps pref64 %v", m.IPv6, pref64.prefix)
	}
	return nil
}

// own enters natless's own addresses.
func (g *stage) own(c Config) error {
	t := g.t
	if a := t.own4; a.IsValid() {
		p := netip.PrefixFrom(a, 32)
		g.ownShared = slices.ContainsFunc(c.Pools, func(q Pool) bool { return q.IPv4 == p && q.Ports != Ports{} })
		if !a.Is4() {
			return fmt.Errorf("own IPv4 address %v: not an IPv4 address", a)
		}
		if e, _ := g.v4.Lookup(a); e != nil && e.kind == kindIllegal {
			return fmt.Errorf("own IPv4 address %v: a %s address", a, e.of)
		}
		if e, _ := g.v4.Get(p); e != nil {
			return fmt.Errorf("own IPv4 address %v: taken by %v", a, e.of)
		}
		if !g.ownShared {
			g.put4(p, &entry{kind: kindOwn, of: "natless itself"})
		}
	}
	if a := t.own6; a.IsValid() {
		p := netip.PrefixFrom(a, 128)
		if !a.Is6() || a.Is4In6() || a.Zone() != "" {
			return fmt.Errorf("own IPv6 address %v: not an IPv6 address", a)
		}
		if e, _ := g.v6.Lookup(a); e != nil && e.kind != kindMap {
			return fmt.Errorf("own IPv6 address %v: a %s address", a, e.of)
		}
		if e, _ := g.v6.Get(p); e != nil {
			return fmt.Errorf("own IPv6 address %v: taken by %v", a, e.of)
		}
		g.put6(p, &entry{kind: kindOwn, of: "natless itself"})
	}
	return nil
}

func (g *stage) addPools(c Config) error {
	for _, cfg := range c.Pools {
		p, err := newPool(cfg)
		if err != nil {
			return fmt.Errorf("%v: %w", &cfg, err)
		}
		for _, q := range g.pools {
			if q.IPv4.Overlaps(p.IPv4) {
				return fmt.Errorf("%v: overlaps %v", p, q)
			}
		}
		// Whatever is longer than the pool is taken out of it; what is as long or
		// shorter would take all.
		if e, _ := g.v4.LookupPrefix(p.IPv4); e != nil && (e.kind == kindMap || e.kind == kindOwn) {
			return fmt.Errorf("%v: all of it is taken by %v", p, e.of)
		}
		g.put4(p.IPv4, p.entry)
		if p.usable = p.lendable(g.v4, p.IPv4); p.usable == 0 {
			return fmt.Errorf("%v: no address is left to lend", p)
		}
		g.pools = append(g.pools, p)
	}
	return nil
}

// standIns enters rfc6791. A stand-in that is a client too would put words in
// the client's mouth.
func (g *stage) standIns(c Config) error {
	t := g.t
	g.rfc6791 = slices.Clone(c.RFC6791)
	if len(g.rfc6791) == 0 && t.own4.IsValid() {
		g.rfc6791 = []netip.Prefix{netip.PrefixFrom(t.own4, 32)}
	}
	for _, p := range g.rfc6791 {
		if !p.IsValid() || !p.Addr().Is4() || p != p.Masked() {
			return fmt.Errorf("rfc6791 %v: not an IPv4 prefix", p)
		}
		g.rfc6791Size += size4(p)
		if p.Bits() == 32 && p.Addr() == t.own4 {
			continue
		}
		for _, q := range g.pools {
			if q.IPv4.Overlaps(p) {
				return fmt.Errorf("rfc6791 %v: overlaps %v", p, q)
			}
		}
		if e, _ := g.v4.LookupPrefix(p); e != nil && e.kind != kindBeyond {
			return fmt.Errorf("rfc6791 %v: overlaps %v", p, e.of)
		}
		for _, e := range g.v4.Subnets(p) {
			if e.kind == kindMap {
				return fmt.Errorf("rfc6791 %v: overlaps %v", p, e.of)
			}
		}
	}
	return nil
}

// longest is the longest duration of a pool: ticks must be told apart after
// they wrapped around.
const longest = 20 * 365 * 24 * time.Hour

// most is how many ranges a pool may have.
const most = 1 << 30

// newPool checks a pool by itself.
func newPool(c Pool) (*pool, error) {
	switch {
	case !c.IPv4.IsValid() || !c.IPv4.Addr().Is4():
		return nil, errors.New("not an IPv4 prefix")
	case c.IPv4 != c.IPv4.Masked():
		return nil, fmt.Errorf("bits behind the prefix are set, expected %v", c.IPv4.Masked())
	case c.IPv4.Bits() < 8:
		return nil, errors.New("larger than a /8")
	case c.Idle < 0 || c.MaxLife < 0 || c.Quarantine < 0:
		return nil, errors.New("a negative duration")
	case max(c.Idle, c.MaxLife, c.Quarantine) > longest:
		return nil, fmt.Errorf("a duration above %v", longest)
	case c.Ports != Ports{} && c.Quarantine < RestRange:
		return nil, fmt.Errorf("a quarantine of %v: expected at least %v, since clients share addresses", c.Quarantine, RestRange)
	case len(c.Clients) == 0 && !c.Local:
		return nil, errors.New("no client may lease from it")
	}
	if err := c.Ports.Check(); err != nil {
		return nil, err
	}
	per := c.Ports.Clients()
	if size4(c.IPv4)*uint64(per) > most {
		return nil, fmt.Errorf("%d ranges in each of %d addresses: expected at most %d altogether", per, size4(c.IPv4), most)
	}
	for _, x := range refused4 {
		if x.kind == kindIllegal && x.prefix.Overlaps(c.IPv4) && x.name != "broadcast" {
			return nil, fmt.Errorf("overlaps %s %v", x.name, x.prefix)
		}
	}
	for _, x := range c.Clients {
		if !x.IsValid() || !x.Addr().Is6() || x.Addr().Is4In6() {
			return nil, fmt.Errorf("client %v is not an IPv6 prefix", x)
		}
	}

	p := &pool{
		Pool: c, per: uint32(per), size: uint32(size4(c.IPv4)) * uint32(per),
		returned: map[uint32]*returned{}, wide: new(bart.Fast[*returned]), former: map[netip.Addr]*returned{}, labels: map[string][]*returned{}, refusals: map[netip.Addr]uint32{},
	}
	p.Clients = slices.Clone(c.Clients)
	p.entry = &entry{kind: kindPool, of: p}
	if p.Ports != (Ports{}) {
		p.entry = &newShared(p).entry
	}
	p.first = p.unit(FirstUsable(c.IPv4), 0)
	p.next = p.first
	p.permit(nil)
	return p, nil
}

// FirstUsable is the first address of a pool that may be lent, or be natless's
// own.
func FirstUsable(pool netip.Prefix) netip.Addr {
	if pool.Bits() > 30 {
		return pool.Masked().Addr()
	}
	return pool.Masked().Addr().Next()
}

// DefaultOwnIPv4 is the first usable address of the first pool that no map
// takes out of it; invalid if there is none.
func DefaultOwnIPv4(pools []Pool, maps []Map) netip.Addr {
	for _, p := range pools {
		if !p.IPv4.Addr().Is4() {
			continue // New says so
		}
		if a := firstFree(p.IPv4, maps); a.IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// firstFree is the first usable address of a pool that is in no map.
func firstFree(pool netip.Prefix, maps []Map) netip.Addr {
	var inside []netip.Prefix
	for i := range maps {
		if maps[i].IPv4.Overlaps(pool) {
			inside = append(inside, maps[i].IPv4)
		}
	}
	slices.SortFunc(inside, netip.Prefix.Compare)
	a := FirstUsable(pool)
	for _, x := range inside {
		if x.Contains(a) {
			a = last4(x).Next()
		}
	}
	if !pool.Contains(a) {
		return netip.Addr{}
	}
	return a
}

// String names a map as errors do.
func (m *Map) String() string {
	return fmt.Sprintf("map %v = %v%s", m.IPv4, m.IPv6, origin(m.Origin))
}

// String names a pool as errors do.
func (p *Pool) String() string { return fmt.Sprintf("pool %v%s", p.IPv4, origin(p.Origin)) }

func origin(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// size4 is how many addresses an IPv4 prefix has.
func size4(p netip.Prefix) uint64 { return 1 << (32 - p.Bits()) }

func last4(p netip.Prefix) netip.Addr {
	return addr4(number4(p.Addr()) + uint32(size4(p)-1))
}
