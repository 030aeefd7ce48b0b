package hostnet

import (
	"strings"
	"testing"

	"github.com/google/nftables/expr"
	"github.com/stretchr/testify/require"
)

func TestFollow(t *testing.T) {
	link := func(name string) linkMatch { return linkMatch{name: name} }
	const (
		accept = expr.VerdictAccept
		drop   = expr.VerdictDrop
		back   = expr.VerdictReturn
		on     = expr.VerdictContinue
		jump   = expr.VerdictJump
		goTo   = expr.VerdictGoto
	)
	from, towards := way{in: "natless0"}, way{out: "natless0"}
	for name, c := range map[string]struct {
		policy bool // drop
		rules  map[string][]rule
		way    way
		blocks bool
	}{
		"accept policy": {way: from},
		"drop policy":   {policy: true, way: from, blocks: true},
		"own rule":      {true, map[string][]rule{"": {{in: link("natless0"), verdict: accept}}}, from, false},
		"own rule, the other direction": {
			true, map[string][]rule{"": {{in: link("natless0"), verdict: accept}}}, towards, true,
		},
		"somebody else's rule": {true, map[string][]rule{"": {{in: link("natless1"), verdict: accept}}}, from, true},
		"part of a name":       {true, map[string][]rule{"": {{in: link("natless"), verdict: accept}}}, from, true},
		"a pattern":            {true, map[string][]rule{"": {{in: linkMatch{name: "natless", prefix: true}, verdict: accept}}}, from, false},
		"any but another":      {true, map[string][]rule{"": {{in: linkMatch{name: "eth0", not: true}, verdict: accept}}}, from, false},
		"any but this":         {true, map[string][]rule{"": {{in: linkMatch{name: "natless0", not: true}, verdict: accept}}}, from, true},
		"any but another, of no name": {
			true, map[string][]rule{"": {{in: linkMatch{name: "eth0", not: true}, verdict: accept}}}, towards, true,
		},
		"more conditions":      {true, map[string][]rule{"": {{more: true, verdict: accept}}}, from, true},
		"the rest is rejected": {false, map[string][]rule{"": {{more: true, verdict: accept}, {verdict: drop}}}, from, true},
		"drop before accept":   {false, map[string][]rule{"": {{verdict: drop}, {in: link("natless0"), verdict: accept}}}, from, true},
		"counted":              {true, map[string][]rule{"": {{verdict: on}, {verdict: accept}}}, from, false},
		"in a chain": {
			true, map[string][]rule{"": {{verdict: jump, to: "user"}}, "user": {{in: link("natless0"), verdict: accept}, {verdict: back}}}, from, false,
		},
		"back from a chain": {
			false, map[string][]rule{"": {{verdict: jump, to: "user"}, {verdict: drop}}, "user": {{verdict: back}, {verdict: accept}}}, from, true,
		},
		"not back from a goto": {
			false, map[string][]rule{"": {{verdict: goTo, to: "user"}, {verdict: drop}}, "user": {{in: link("eth0"), verdict: drop}}}, from, false,
		},
		"a chain for some": {true, map[string][]rule{"": {{more: true, verdict: goTo, to: "user"}}, "user": {{verdict: accept}}}, from, true},
		"a chain for some, which is enough": {
			true, map[string][]rule{"": {{more: true, verdict: goTo, to: "user"}}, "user": {{verdict: accept}}},
			way{in: "natless0", lenient: true}, false,
		},
		"a chain for some that drops": {
			false, map[string][]rule{"": {{more: true, verdict: goTo, to: "user"}}, "user": {{verdict: drop}}},
			way{in: "natless0", lenient: true}, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := &foreign{drop: c.policy, rules: func(chain string) []rule { return c.rules[chain] }}
			require.Equal(t, c.blocks, f.blocks(c.way))
		})
	}
}

// The same rules read the same from the older iptables as from the newer.
func TestBothIptablesReadTheSame(t *testing.T) {
	testHost(t)
	needs(t, "iptables-nft", "ip6tables-nft")
	needsLegacy(t)
	const rules = dockerRules + `
$I -N empty; $I -N elsewhere
$I -A FORWARD -g elsewhere
$I -A FORWARD -i natless+ ! -o eth+ -j RETURN
$I -A FORWARD ! -i fifteen-letters -o natless0
$I -A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT
$I -A FORWARD -p udp -j ACCEPT
$I -A FORWARD -m comment --comment "natless natless0" -m conntrack --ctstate INVALID -j DROP
$I -A FORWARD -j LOG
$I -A FORWARD -j REJECT
$I -A elsewhere -i natless0 -m comment --comment "natless natless0" -j ACCEPT
$I -A elsewhere -j empty
`
	for _, command := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"-nft", "-legacy"} {
			shell(t, "I="+command+suffix+"\n"+rules)
			address := map[string]string{"iptables": "192.0.2.0/24", "ip6tables": "2001:db8::/32"}[command]
			shell(t, command+suffix+" -A elsewhere -s "+address+" -j ACCEPT; "+command+suffix+" -A elsewhere ! -d "+address+" -j ACCEPT")
		}
	}
	read := map[bool]map[string][]rule{false: {}, true: {}}
	for _, f := range foreignChains() {
		if !f.compatible() {
			continue
		}
		require.True(t, f.drop)
		for _, chain := range f.chains {
			if strings.ToUpper(chain) != "INPUT" && chain != "OUTPUT" {
				read[f.legacy][f.family+" "+chain] = append([]rule{}, f.rules(chain)...)
			}
		}
	}
	require.Len(t, read[true], 2*10)
	require.Len(t, read[true]["ip FORWARD"], 10)
	require.Equal(t, rule{in: linkMatch{name: "natless", prefix: true}, out: linkMatch{name: "eth", prefix: true, not: true}, verdict: expr.VerdictReturn},
		read[true]["ip6 FORWARD"][3])
	require.Equal(t, read[false], read[true])
}
