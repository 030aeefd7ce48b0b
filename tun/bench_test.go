package tun

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The benchmarks report CPU time of the thread beside wall time: that is what a
// translator pays, and what a busy machine does not blur.

func BenchmarkWriteDropped(b *testing.B) {
	for _, offload := range []bool{true, false} {
		b.Run(mode(offload), func(b *testing.B) {
			inNamespace(b, func() {
				d := open(b, Config{Name: "nl0", Queues: 1, Offload: offload})
				up(b, d, "192.0.2.1/24") // and no forwarding
				packet := append(make([]byte, off), tcpPacket(24)...)
				measure(b, func() {
					if err := d.Queues()[0].Write(packet, off, 64, Header{}); err != nil {
						b.Fatal(err)
					}
				})
			})
		})
	}
}

func BenchmarkForwardSuperPacket(b *testing.B) {
	inNamespace(b, func() {
		in := open(b, Config{Name: "nl0", Queues: 1, Offload: true})
		out := open(b, Config{Name: "nl1", Queues: 1, Offload: true})
		up(b, in, "192.0.2.1/24")
		up(b, out, "198.51.100.254/24")
		sysctl(b, "ipv4/ip_forward", "1")
		packet := append(make([]byte, off), tcpPacket(60_000)...)
		h := Header{Flags: needs, GSOType: unix.VIRTIO_NET_HDR_GSO_TCPV4, HdrLen: 40, GSOSize: 1448, CsumStart: 20, CsumOffset: 16}
		buf := make([]byte, off+MaxPacket)
		b.SetBytes(60_000)
		measure(b, func() {
			err := in.Queues()[0].Write(packet, off, len(packet)-off, h)
			if err == nil {
				_, _, err = out.Queues()[0].Read(buf, off)
			}
			if err != nil {
				b.Fatal(err)
			}
		})
	})
}

func mode(offload bool) string {
	if offload {
		return "offload"
	}
	return "plain"
}

func measure(b *testing.B, f func()) {
	b.Helper()
	b.ReportAllocs()
	before := threadCPU(b)
	for b.Loop() {
		f()
	}
	b.ReportMetric(float64(threadCPU(b)-before)/float64(b.N), "cpu-ns/op")
}

func threadCPU(b *testing.B) int64 {
	var t unix.Timespec
	require.NoError(b, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t))
	return t.Nano()
}
