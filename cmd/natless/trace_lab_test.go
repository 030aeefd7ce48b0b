package main_test

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
)

// The running daemon says of a new client what its first packet would get,
// makes no lease by saying so, and gives that very address to the packet.
func TestLabTrace(t *testing.T) {
	eachOffload(t, func(t *testing.T, offload string) {
		w := start(t, setup{offload: offload})
		ask := func() (verdict, rule, to string) {
			var r struct {
				Verdict string
				Steps   []struct{ Step, Rule, To string }
			}
			answer := w.query(t, "trace", "-o", "json", "icmp", client1, lab.Server6)
			require.NoError(t, json.Unmarshal([]byte(answer), &r))
			require.Len(t, r.Steps, 3, answer)
			require.Equal(t, "source", r.Steps[1].Step)
			return r.Verdict, r.Steps[1].Rule, r.Steps[1].To
		}
		verdict, rule, foreseen := ask()
		assert.Equal(t, "translated", verdict)
		assert.Equal(t, "pool", rule)
		assert.Empty(t, w.query(t, "lease", "ls", "-o", "json"))

		_, err := lab.Ping(t.Context(), w.client, "", netip.MustParseAddr(lab.Server6), 56)
		require.NoError(t, err)
		var lease struct{ IPv4 string }
		require.NoError(t, json.Unmarshal([]byte(w.query(t, "lease", "ls", "-o", "json")), &lease))
		assert.Equal(t, foreseen, lease.IPv4)
		verdict, rule, to := ask()
		assert.Equal(t, []string{"translated", "lease", foreseen}, []string{verdict, rule, to})

		assert.Contains(t, w.query(t, "trace", "tcp", client1, "1", lab.OwnIPv6, "2"), "own_address")
	})
}
