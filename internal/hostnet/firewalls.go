package hostnet

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/google/nftables/expr"
)

// Firewall is a table of another program that drops forwarded packets unless
// told otherwise, and was not told. An accept in natless's own table does not
// overrule it.
type Firewall struct {
	Owner string `json:"owner"` // Docker, ufw, firewalld, iptables, or "" for unknown
	Chain string `json:"chain"` // family, table and chain as nft has them
	Opens string `json:"opens"` // the command that lets natless's packets through

	// opening is what Plan.Open does about it; the zero value: nothing.
	opening opening
}

// String names the firewall and what opens it.
func (f Firewall) String() string {
	return fmt.Sprintf("%s drops forwarded packets (%s); this lets natless's through: %s", cmp.Or(f.Owner, "a firewall"), f.Chain, f.Opens)
}

// The programs whose firewalls are known.
const (
	docker    = "Docker"
	ufw       = "ufw"
	firewalld = "firewalld"
	iptables  = "iptables"
)

// dockerUser is the chain that Docker leaves to others, and asks first.
const dockerUser = "DOCKER-USER"

// Firewalls finds what drops packets on their way from or to the device of that
// name, whether there is one already or not. It opens nothing.
func Firewalls(device string) ([]Firewall, error) {
	p := Plan{Device: device, Local: true}
	v, err := lookAs(p, missing, nil)
	if err != nil {
		return nil, err
	}
	return firewalls(v, p), nil
}

// Firewalls finds what drops packets on their way from or to the device. It
// opens nothing.
func (h *Host) Firewalls() ([]Firewall, error) {
	h.mu.Lock()
	p := h.plan
	v, err := lookAs(p, h.device, h.rec)
	h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return firewalls(v, p), nil
}

func firewalls(v *view, p Plan) []Firewall {
	var found []Firewall
	for _, f := range foreignChains() {
		if f.table == firewalld {
			found = append(found, f.firewalld(p.Device, v.names(v.clientLinks(p, v.device(p.Device))))...)
		} else if f.blocks(way{in: p.Device}) || f.blocks(way{out: p.Device}) {
			found = append(found, f.firewall(p.Device))
		}
	}
	return found
}

// firewall is a chain that drops, with the one command that opens it for both
// directions.
func (f *foreign) firewall(device string) Firewall {
	fw := Firewall{Owner: f.owner(), Chain: f.String()}
	switch {
	case fw.Owner == ufw:
		fw.opening = opening{Tool: ufw, Device: device}
	case f.hasChain(dockerUser) && f.compatible():
		fw.opening = opening{Tool: f.iptables(), Chain: dockerUser, Device: device}
	case f.compatible():
		fw.opening = opening{Tool: f.iptables(), Chain: f.chain, Device: device}
	default:
		insert := fmt.Sprintf("insert rule %v", f)
		fw.Opens = fmt.Sprintf(`nft '%s iifname "%s" accept; %s oifname "%s" accept'`, insert, device, insert, device)
		return fw
	}
	fw.Opens = fw.opening.String()
	return fw
}

// owner tells a firewall by the names it gives. Who has rules that all packets
// pass comes first: where Docker and ufw share a chain, Docker's.
func (f *foreign) owner() string {
	switch {
	case f.hasChain(dockerUser) || strings.HasPrefix(f.table, "docker-"):
		return docker
	case f.hasChain("ufw-") || f.hasChain("ufw6-"):
		return ufw
	case f.hasChain("DOCKER"):
		return docker
	case f.compatible():
		return iptables
	}
	return ""
}

// compatible tells whether a chain is one that iptables and ip6tables work
// with.
func (f *foreign) compatible() bool {
	return f.table == "filter" && f.chain == forwardChain && f.family != "inet"
}

// iptables is the command for the chain's family and kind.
func (f *foreign) iptables() string {
	command := map[bool]string{false: "iptables", true: "ip6tables"}[f.family == "ip6"]
	if f.legacy {
		command += legacySuffix
	}
	return command
}

// firewalld sends packets to the zone of the link they come in by, most of which
// reject what is to be forwarded. Besides the device's zone it is the clients'
// that counts, and their zone is not natless's to change: in another one they
// would reach more of the host itself.
func (f *foreign) firewalld(device string, clients []string) []Firewall {
	var found []Firewall
	add := func(links []string, o opening) {
		found = append(found, Firewall{
			Owner: firewalld, Chain: fmt.Sprintf("%v, coming in over %s", f, strings.Join(links, ", ")), opening: o,
			Opens: "firewall-cmd --zone=trusted --add-interface=" + strings.Join(links, " --add-interface="),
		})
	}
	if f.blocks(way{in: device}) {
		add([]string{device}, opening{Tool: firewallCmd, Device: device})
	}
	var shut []string
	for _, c := range clients {
		if f.blocks(way{in: c, out: device, lenient: true}) {
			shut = append(shut, c)
		}
	}
	if len(shut) > 0 {
		add(shut, opening{})
	}
	return found
}

// marked finds by their comments the rules of natless's own in the tables of
// iptables, and tells whether ufw is at work there.
func marked() (found []opening, inUFW bool) {
	for _, f := range foreignChains() {
		if !f.compatible() {
			continue
		}
		for _, name := range []string{dockerUser, forwardChain} {
			for _, r := range f.rules(name) {
				device, own := strings.CutPrefix(r.comment, commentPrefix)
				if own && r.verdict == expr.VerdictAccept {
					found = addOpening(found, opening{Tool: f.iptables(), Chain: name, Device: device})
				}
			}
		}
		inUFW = inUFW || f.hasChain("ufw-") || f.hasChain("ufw6-")
	}
	return found, inUFW
}
