package hostnet

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rules that let nothing in match links by their index: one that is renamed is
// the same link, and one that takes its name is another.

// guard is how the forward chain begins: links that forward only because
// natless made them pass nothing else, nor does any where all are raised, and
// what does not go to the device is none of the later rules' business. An accept
// ends only this chain: other tables still have their say.
func (t *familyTable) guard(s tableSpec, opened []linkRef, raised bool) {
	elsewhere := byLink(expr.MetaKeyOIF, expr.CmpOpNeq, s.Index)
	bridged, within := "", []expr.Any(nil)
	if (raised || len(opened) > 0) && len(s.Bridges) > 0 {
		t.addPairs(setWithin, s.Bridges)
		bridged, within = "iif . oif != @within ", notWithin()
	}
	switch {
	case raised:
		t.addForward(fmt.Sprintf("iif != %q oif != %q %sdrop", s.Device, s.Device, bridged),
			byLink(expr.MetaKeyIIF, expr.CmpOpNeq, s.Index), elsewhere, within, verdict(expr.VerdictDrop))
	case len(opened) > 0:
		t.addLinks(setOpened, opened)
		t.addForward(fmt.Sprintf("iif @opened oif != %q %sdrop", s.Device, bridged),
			in(setOpened), elsewhere, within, verdict(expr.VerdictDrop))
	}
	t.addForward(fmt.Sprintf("oif != %q accept", s.Device), elsewhere, verdict(expr.VerdictAccept))
}

func (t *familyTable) addLinks(name string, links []linkRef) {
	set := setSpec{name: name, typ: nftables.TypeIFIndex, items: quoted(links)}
	for _, l := range links {
		set.elements = append(set.elements, nftables.SetElement{Key: l.key()})
	}
	t.sets = append(t.sets, set)
}

// addPairs is a set of each link with itself.
func (t *familyTable) addPairs(name string, links []linkRef) {
	set := setSpec{name: name, typ: nftables.MustConcatSetType(nftables.TypeIFIndex, nftables.TypeIFIndex)}
	var pairs []string
	for _, l := range links {
		set.elements = append(set.elements, nftables.SetElement{Key: append(l.key(), l.key()...)})
		pairs = append(pairs, fmt.Sprintf("%q . %q", l.name, l.name))
	}
	set.items = strings.Join(pairs, ", ")
	t.sets = append(t.sets, set)
}

// key is the link's index as the kernel compares it.
func (l linkRef) key() []byte { return binaryutil.NativeEndian.PutUint32(uint32(l.index)) }

func quoted(links []linkRef) string {
	list := make([]string, len(links))
	for i, l := range links {
		list[i] = fmt.Sprintf("%q", l.name)
	}
	return strings.Join(list, ", ")
}

// bridgesSeen are the bridges that the forward chain sees what they pass between
// their ports of, since br_netfilter shows it.
func (v *view) bridgesSeen() (list []linkRef) {
	four, _ := readSysctl(filepath.Join(procNet, "bridge", "bridge-nf-call-iptables"))
	six, _ := readSysctl(filepath.Join(procNet, "bridge", "bridge-nf-call-ip6tables"))
	if four != yes && six != yes {
		return nil
	}
	for _, l := range v.sorted() {
		if l.kind == kindBridge {
			list = append(list, linkRef{l.index, l.name})
		}
	}
	return list
}

// byLink matches packets that come in, or go out, by a link, or by any other.
func byLink(key expr.MetaKey, op expr.CmpOp, index int) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: linkRef{index: index}.key()},
	}
}

func in(set string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	}
}

func notIn(set string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: set, Invert: true},
	}
}

// notFrom6 matches IPv6 packets whose source is in no prefix of a set.
func notFrom6(set string) []expr.Any {
	return []expr.Any{source6(), &expr.Lookup{SourceRegister: 1, SetName: set, Invert: true}}
}

// notWithin matches packets that do not leave by the bridge they came in by.
func notWithin() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: unix.NFT_REG32_00},
		&expr.Meta{Key: expr.MetaKeyOIF, Register: unix.NFT_REG32_01},
		&expr.Lookup{SourceRegister: unix.NFT_REG32_00, SetName: setWithin, Invert: true},
	}
}
