package main_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natless/natless/internal/lab"
)

// A download on a leased address through a masqueraded pool survives two
// seconds without natless, whether it was stopped or killed. Another client had
// leased before, so that only what was written down gives the address back.
func TestLabRestartUnderLoad(t *testing.T) {
	ends := map[string]func(*lab.Daemon) error{
		"SIGTERM": (*lab.Daemon).Stop,
		"SIGKILL": (*lab.Daemon).Kill,
	}
	eachOffload(t, func(t *testing.T, offload string) {
		for name, end := range ends {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := setup{
					offload: offload,
					config:  own + "[network]\non_exit = \"keep\"\n",
					flags:   []string{"--pref64", lab.Pref64},
				}
				w := start(t, s)
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				require.NoError(t, lab.Exchange(ctx, w.client, "2001:db8:1::80", server6+":7", 100))
				require.NoError(t, lab.Exchange(ctx, w.client, client1, server6+":7", 100))
				lease := w.leaseOf(t, client1)
				assert.Equal(t, "169.254.64.3", lease.String())

				// At most so many bytes a second, so that the interruption
				// falls into the middle.
				const size, perSecond = 24 << 20, 8 << 20
				begun := time.Now()
				running, done := make(chan struct{}), make(chan error, 1)
				go func() {
					started := false
					// TCP doubles its patience with every packet it sends
					// again: it may take as long again until it tries.
					patient := w.client.PatientHTTP("", 20*time.Second)
					down, err := lab.Download(ctx, patient, server6+":8080", make([]byte, size), func(got int) {
						if !started && got > size/8 {
							started = true
							close(running)
						}
						time.Sleep(time.Until(begun.Add(time.Duration(got) * time.Second / perSecond)))
					})
					assert.Equal(t, lab.HostIPv4, down.Client, "masqueraded")
					done <- err
				}()
				select {
				case <-running:
				case err := <-done:
					require.Fail(t, "ended too early", "%v", err)
				}
				require.NoError(t, end(w.daemon))
				time.Sleep(2 * time.Second)
				select {
				case err := <-done:
					require.Fail(t, "ended while natless was away", "%v", err)
				default:
				}
				w.run(t, s)
				require.NoError(t, <-done)
				assert.Equal(t, lease, w.leaseOf(t, client1))
			})
		}
	})
}
