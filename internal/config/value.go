package config

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const day = 24 * time.Hour

// setValue stores what the file or a flag gave in the field at out, a pointer,
// as its type and the field's tags ask. It changes nothing when it fails. The
// error says what was given and what was expected, not where.
func setValue(out any, v any, tag reflect.StructTag) error {
	switch out := out.(type) {
	case *bool:
		return store(out, v, "true or false, without quotes", accept)
	case *int:
		return store(out, v, "a whole number, without quotes", func(n int64) (int, error) {
			if int64(int32(n)) != n {
				return 0, errors.New("expected a smaller number")
			}
			return int(n), nil
		})
	case *string:
		words := strings.Fields(tag.Get("enum"))
		if len(words) == 0 {
			return store(out, v, "a string in quotes", accept)
		}
		return store(out, v, oneOf(words), func(s string) (string, error) {
			for _, w := range words {
				if s == w {
					return s, nil
				}
			}
			return "", fmt.Errorf("expected %s", oneOf(words))
		})
	case *time.Duration:
		return store(out, v, expectedDuration, parseDuration)
	case *netip.Addr:
		family, option := familyOf(tag)
		return store(out, v, inQuotes(family.address()), func(s string) (netip.Addr, error) {
			if s == "" && option == "optional" {
				return netip.Addr{}, nil
			}
			return parseAddr(s, family)
		})
	case *netip.Prefix:
		family, option := familyOf(tag)
		return store(out, v, inQuotes(family.prefix()), func(s string) (netip.Prefix, error) {
			if s == "" && option == "optional" {
				return netip.Prefix{}, nil
			}
			return parsePrefix(s, family, option == "mapped")
		})
	case *netip.AddrPort:
		return store(out, v, "an address in quotes, such as \"[2001:db8::1]:53\"", parseAddrPort)
	case *Client:
		return store(out, v, `an IPv6 prefix in quotes, or "local"`, parseClient)
	}
	panic(fmt.Sprintf("config: no way to read a %T", out)) // a field of Config of a new type
}

// store parses v, which must be of type In, into out; expected says what the
// key wants when v is of another type.
func store[In, Out any](out *Out, v any, expected string, parse func(In) (Out, error)) error {
	in, ok := v.(In)
	if !ok {
		return fmt.Errorf("%s: expected %s", given(v), expected)
	}
	parsed, err := parse(in)
	if err != nil {
		return fmt.Errorf("%s: %w", given(v), err)
	}
	*out = parsed
	return nil
}

func accept[T any](v T) (T, error) { return v, nil }

// given is a value as a message shows it: what was written, with quotes only
// where it could be misread without.
func given(v any) string {
	switch v := v.(type) {
	case string:
		odd := func(r rune) bool { return r == '"' || unicode.IsSpace(r) || !unicode.IsPrint(r) }
		if v == "" || !utf8.ValidString(v) || strings.ContainsFunc(v, odd) {
			return strconv.Quote(v)
		}
		return v
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return fmt.Sprint(v)
}

// oneOf lists words as a sentence has them: a, b or c.
func oneOf(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = strconv.Quote(w)
	}
	last := len(quoted) - 1
	if last < 1 {
		return strings.Join(quoted, "")
	}
	return strings.Join(quoted[:last], ", ") + " or " + quoted[last]
}

const expectedDuration = `a duration such as "1h30m", "30d" or "0"`

// ParseDuration reads a duration as the file has it, such as "1h30m" or "2d".
// The error says what was expected, not what was given.
func ParseDuration(s string) (time.Duration, error) { return parseDuration(s) }

// parseDuration is time.ParseDuration with days in front ("30d", "1d12h") and
// without negative durations.
func parseDuration(s string) (time.Duration, error) {
	if strings.HasPrefix(s, "-") {
		return 0, errors.New("a negative duration: expected " + expectedDuration)
	}
	var days uint64
	before, rest, cut := strings.Cut(s, "d")
	if cut {
		n, err := strconv.ParseUint(before, 10, 16)
		if err != nil {
			return 0, errors.New("expected " + expectedDuration)
		}
		days = n
	} else {
		rest = s
	}
	if rest == "" && cut {
		rest = "0"
	}
	d, err := time.ParseDuration(rest)
	if err != nil || strings.ContainsAny(rest, "+-") {
		return 0, errors.New("expected " + expectedDuration)
	}
	if d += time.Duration(days) * day; d > maxDays*day {
		return 0, fmt.Errorf("expected at most %dd", maxDays)
	}
	return d, nil
}

// Twenty years, in days: what a counter of seconds tells apart by far.
const maxDays = 7300

// formatDuration is the shortest text that parseDuration reads as d.
func formatDuration(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	days := ""
	if d >= day {
		days = fmt.Sprintf("%dd", d/day)
		d %= day
	}
	if d == 0 {
		return days
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return days + s
}

// family is 4, 6 or either.
type family int

const either family = 0

// familyOf reads an ip tag.
func familyOf(tag reflect.StructTag) (f family, option string) {
	number, option, _ := strings.Cut(tag.Get("ip"), " ")
	if number == "4" {
		return 4, option
	}
	return 6, option
}

func (f family) article() string {
	if f == either {
		return "an IPv4 or IPv6"
	}
	return fmt.Sprintf("an IPv%d", int(f)) // both are read with "an" in front
}

// text says what is expected of a string: an address or a prefix.
func (f family) text(what, example4, example6 string) string {
	example := map[family]string{4: example4, 6: example6, either: example4 + " or " + example6}[f]
	return fmt.Sprintf("%s %s, such as %s", f.article(), what, example)
}

func (f family) address() string { return f.text("address", "192.0.2.1", "2001:db8::1") }
func (f family) prefix() string  { return f.text("prefix", "192.0.2.0/24", "2001:db8::/64") }

// inQuotes is what text says where the file has no string, or nothing.
func inQuotes(expected string) string {
	what, example, _ := strings.Cut(expected, ", such as ")
	return what + " in quotes, such as " + strconv.Quote(example)
}

// check refuses what is of the other family, or only looks like this one.
func (f family) check(a netip.Addr, what string) error {
	switch {
	case a.Is4In6():
		return fmt.Errorf("an IPv4-mapped IPv6 address: expected %s %s", f.article(), what)
	case a.Zone() != "":
		return fmt.Errorf("an address with a zone: expected %s %s without one", f.article(), what)
	case a.Is4() && f == 6:
		return fmt.Errorf("an IPv4 %s where an IPv6 %[1]s belongs", what)
	case a.Is6() && f == 4:
		return fmt.Errorf("an IPv6 %s where an IPv4 %[1]s belongs", what)
	}
	return nil
}

func parseAddr(s string, f family) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, errors.New("expected " + f.address())
	}
	return a, f.check(a, "address")
}

// ParsePrefix reads a prefix of family 4, 6 or, with 0, either, as the file has
// it: a plain address is the prefix of all its bits. The error says what was
// expected, not what was given.
func ParsePrefix(s string, ipVersion int) (netip.Prefix, error) {
	return parsePrefix(s, family(ipVersion), false)
}

// parsePrefix reads a prefix. A plain address is the prefix of all its bits;
// bits behind the prefix are refused, because they are as often a wrong length
// as a sloppy address. With mapped, IPv4-mapped addresses pass for IPv6.
func parsePrefix(s string, f family, mapped bool) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if err := f.check(a, "address"); err != nil {
			return netip.Prefix{}, err
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if addr, bits, ok := strings.Cut(s, "/"); ok {
			if a, err := netip.ParseAddr(addr); err == nil && a.Zone() == "" {
				return p, fmt.Errorf("the prefix length %s is none of 0 to %d", given(bits), a.BitLen())
			}
		}
		return p, errors.New("expected " + f.prefix())
	}
	if !mapped || !p.Addr().Is4In6() {
		if err := f.check(p.Addr(), "prefix"); err != nil {
			return p, err
		}
	}
	if p != p.Masked() {
		return p, fmt.Errorf("bits are set behind the prefix: expected %v", p.Masked())
	}
	return p, nil
}

// dnsPort is that of addresses that come without one: all such keys are about DNS.
const dnsPort = 53

// parseAddrPort reads an address with or without a port.
func parseAddrPort(s string) (netip.AddrPort, error) {
	bare := strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]")
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil && (bare || !strings.ContainsAny(s, "[]")) {
		return netip.AddrPortFrom(a, dnsPort), either.check(a, "address")
	}
	p, err := netip.ParseAddrPort(s)
	if err != nil || p.Port() == 0 {
		return netip.AddrPort{}, errors.New(`expected an address, with a port unless it is 53, such as [2001:db8::1]:53 or 192.0.2.1`)
	}
	return p, either.check(p.Addr(), "address")
}

func parseClient(s string) (Client, error) {
	if s == "local" {
		return Client{Local: true}, nil
	}
	p, err := parsePrefix(s, 6, false)
	if err != nil && !strings.ContainsAny(s, ":.") {
		return Client{}, errors.New(`expected an IPv6 prefix in quotes, or "local"`)
	}
	return Client{IPv6: p}, err
}

// String is the entry as the file has it.
func (c Client) String() string {
	if c.Local {
		return "local"
	}
	return c.IPv6.String()
}
