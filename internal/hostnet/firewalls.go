package hostnet

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Firewall is a table of another program that drops forwarded packets unless
// told otherwise. An accept in natless's own table does not overrule it.
type Firewall struct {
	Owner string `json:"owner"` // Docker, ufw, firewalld, or "" for unknown
	Chain string `json:"chain"` // family, table and chain as nft has them
	Opens string `json:"opens"` // the command that lets natless's packets through
}

// String names the firewall and what opens it.
func (f Firewall) String() string {
	owner := f.Owner
	if owner == "" {
		owner = "a firewall"
	}
	return fmt.Sprintf("%s drops forwarded packets (%s); this lets natless's through: %s", owner, f.Chain, f.Opens)
}

// Firewalls finds what would drop packets on their way from or to the device.
// It opens nothing.
func (h *Host) Firewalls() ([]Firewall, error) {
	h.mu.Lock()
	p, device := h.plan, h.device
	h.mu.Unlock()
	v, err := look()
	if err != nil {
		return nil, err
	}
	return firewalls(p.Device, v.names(v.clientLinks(p, device))), nil
}

func firewalls(device string, clients []string) []Firewall {
	found := legacyFirewalls(device)
	conn, err := nftables.New()
	if err != nil {
		return found
	}
	chains, err := conn.ListChains()
	if err != nil {
		return found // Check warns that nftables cannot be read
	}
	for _, c := range chains {
		if !forwards(c) || !drops(conn, c) {
			continue
		}
		where := fmt.Sprintf("%s %s %s", familyNames[c.Table.Family], c.Table.Name, c.Name)
		owner := ownerOf(c.Table, chains)
		found = append(found, Firewall{Owner: owner, Chain: where, Opens: opening(owner, c, chains, device, clients)})
	}
	return found
}

var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip",
	nftables.TableFamilyIPv6: "ip6",
	nftables.TableFamilyINet: "inet",
}

// forwards tells whether forwarded packets of natless's pass through a chain
// that is not its own.
func forwards(c *nftables.Chain) bool {
	_, ip := familyNames[c.Table.Family]
	return ip && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && !isOwn(c.Table)
}

func isOwn(t *nftables.Table) bool {
	return t.Name == ownTable && slices.Contains(onceFamilies, t.Family)
}

// drops tells whether packets that no rule speaks of end at this chain: by its
// policy, or by a last rule that takes all.
func drops(conn *nftables.Conn, c *nftables.Chain) bool {
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		return true
	}
	rules, err := conn.GetRules(c.Table, c)
	if err != nil || len(rules) == 0 {
		return false
	}
	ends := false
	for _, e := range rules[len(rules)-1].Exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			ends = true
		case *expr.Verdict:
			ends = e.Kind == expr.VerdictDrop
		case *expr.Target:
			ends = e.Name == "REJECT"
		default:
			return false
		}
	}
	return ends
}

const (
	docker    = "Docker"
	ufw       = "ufw"
	firewalld = "firewalld"
)

// ownerOf tells a firewall by the names it gives.
func ownerOf(t *nftables.Table, chains []*nftables.Chain) string {
	switch {
	case t.Name == "firewalld":
		return firewalld
	case strings.HasPrefix(t.Name, "docker-") || hasChain(t, chains, "DOCKER"):
		return docker
	case hasChain(t, chains, "ufw-") || hasChain(t, chains, "ufw6-"):
		return ufw
	}
	return ""
}

func hasChain(t *nftables.Table, chains []*nftables.Chain, prefix string) bool {
	return slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
		return c.Table.Name == t.Name && c.Table.Family == t.Family && strings.HasPrefix(c.Name, prefix)
	})
}

// opening is one command for both directions.
func opening(owner string, c *nftables.Chain, chains []*nftables.Chain, device string, clients []string) string {
	switch {
	case owner == docker && hasChain(c.Table, chains, "DOCKER-USER"):
		return iptables(c.Table.Family == nftables.TableFamilyIPv6, "DOCKER-USER", device)
	case owner == ufw:
		return fmt.Sprintf("ufw route allow in on %s && ufw route allow out on %s", device, device)
	case owner == firewalld:
		links := ""
		for _, l := range append([]string{device}, clients...) {
			links += " --add-interface=" + l
		}
		return "firewall-cmd --zone=trusted" + links
	}
	rule := fmt.Sprintf("insert rule %s %s %s", familyNames[c.Table.Family], c.Table.Name, c.Name)
	return fmt.Sprintf(`nft '%s iifname "%s" accept; %s oifname "%s" accept'`, rule, device, rule, device)
}

func iptables(ipv6 bool, chain, device string) string {
	command := "iptables"
	if ipv6 {
		command = "ip6tables"
	}
	return fmt.Sprintf("%s -I %s -i %s -j ACCEPT && %s -I %s -o %s -j ACCEPT", command, chain, device, command, chain, device)
}

// legacyTables list the tables of the older iptables, which nftables does not
// show.
var legacyTables = []struct {
	path    string
	command string
	level   int
	ipv6    bool
}{
	{"/proc/thread-self/net/ip_tables_names", "iptables-legacy", unix.SOL_IP, false},
	{"/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy", unix.SOL_IPV6, true},
}

func legacyFirewalls(device string) []Firewall {
	var found []Firewall
	for _, l := range legacyTables {
		names, err := os.ReadFile(l.path)
		if err != nil || !slices.Contains(strings.Fields(string(names)), "filter") {
			continue
		}
		if drops, err := legacyForwardDrops(l.ipv6, l.level); err == nil && drops {
			found = append(found, Firewall{
				Chain: l.command + " filter FORWARD",
				Opens: strings.ReplaceAll(iptables(l.ipv6, "FORWARD", device), "tables ", "tables-legacy "),
			})
		}
	}
	return found
}
