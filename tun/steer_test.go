package tun

import (
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/testenv"
)

// packets of one connection, 40000 on the client's side to 443, on both sides
// of the translator and in both directions.
var connection = map[string]string{
	"IPv6 out":  "60000000 0014 06 40 20010db8000100000000000000000002 20010db80064000000000000cb007102 9c40 01bb 0000000000000000",
	"IPv6 back": "60000000 0014 06 40 20010db80064000000000000cb007102 20010db8000100000000000000000002 01bb 9c40 0000000000000000",
	"IPv4 out":  "45000028 0000 4000 3f 06 0000 c6336405 cb007102 9c40 01bb 0000000000000000",
	"IPv4 back": "45000028 0000 4000 3f 06 0000 cb007102 c6336405 01bb 9c40 0000000000000000",
	"options":   "46000028 0000 4000 3f 06 0000 c6336405 cb007102 94040000 9c40 01bb 0000000000000000",
	"UDP":       "60000000 0014 11 40 20010db8000100000000000000000002 20010db80064000000000000cb007102 9c40 01bb 0000000000000000",
}

func parse(t *testing.T, packet string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(packet, " ", ""))
	require.NoError(t, err)
	return b
}

func TestSteering(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Skip(t, "loading a program into the kernel needs root")
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "Apache-2.0", Instructions: steering()})
	if errors.Is(err, unix.EPERM) {
		testenv.Skip(t, "no program can be loaded: "+err.Error())
	}
	require.NoError(t, err)
	defer program.Close()
	queue := func(packet string) uint32 {
		ethernet := make([]byte, 14) // taken off before the program runs
		n, _, err := program.Test(append(ethernet, parse(t, packet)...))
		require.NoError(t, err)
		return n
	}

	want := queue(connection["IPv6 out"])
	for name, packet := range connection {
		assert.Equal(t, want, queue(packet), name)
	}

	// A datagram's fragments stay together, whichever has the ports.
	first := queue("45000028 0001 2000 3f 06 0000 c6336405 cb007102 9c40 01bb 0000000000000000")
	assert.Equal(t, first, queue("45000028 0001 00b9 3f 06 0000 c6336405 cb007102 ffff ffff 0000000000000000"))
	assert.Equal(t, first, queue("45000028 0002 4000 3f 01 0000 cb007102 c6336405 0800 0000 0000000000000000"), "ICMP")
	const fragment6 = "60000000 0014 2c 40 20010db8000100000000000000000002 20010db80064000000000000cb007102 0600 "
	assert.Equal(t, queue(fragment6+"0001 00000001 9c40 01bb 00000000"), queue(fragment6+"00b9 00000001 ffff ffff 00000000"))

	// Consecutive ports, as one host gives its connections, use all queues
	// alike.
	var used [4]int
	for port := range 1000 {
		packet := parse(t, connection["IPv4 out"])
		packet[20], packet[21] = byte((32768+2*port)>>8), byte(2*port)
		n, _, err := program.Test(append(make([]byte, 14), packet...))
		require.NoError(t, err)
		used[n%4]++
	}
	for _, n := range used {
		assert.InDelta(t, 250, n, 50, "%v", used)
	}
	assert.Zero(t, queue("45"), "too short to have a flow")
}

// However the answers are written, a flow stays on its queue. Without steering
// the kernel moves it to the one that its answer was written to last.
func TestFlowStaysOnItsQueue(t *testing.T) {
	inNamespace(t, func() {
		for _, offload := range []bool{true, false} {
			d := open(t, Config{Name: "nl0", Queues: 2, Offload: offload})
			if !d.Features().Steering {
				testenv.Skip(t, "no program can be attached to a TUN device here")
			}
			up(t, d, "192.0.2.1/24")
			s := connected(t)
			buf := make([]byte, off+MaxPacket)
			var own Queue
			for i := range 40 {
				_, err := unix.Write(s, []byte{byte(i)})
				require.NoError(t, err)
				q := readable(t, d)
				if own == nil {
					own = q
				}
				require.Same(t, own, q, "packet %d changed queues", i)
				n, h, err := q.Read(buf, off)
				require.NoError(t, err)
				require.EqualValues(t, i, buf[off+28], "order")
				answer := d.Queues()[i/10%2]
				copy(buf[off+12:], []byte{192, 0, 2, 2, 192, 0, 2, 1})
				copy(buf[off+20:], []byte{buf[off+22], buf[off+23], buf[off+20], buf[off+21]})
				require.NoError(t, answer.Write(buf, off, n, h))
			}
			require.NoError(t, d.Close())
		}
	})
}

// readable is the queue of a device that has a packet.
func readable(t *testing.T, d *Device) Queue {
	t.Helper()
	var fds []unix.PollFd
	for _, q := range d.Queues() {
		switch q := q.(type) {
		case *rawQueue:
			fds = append(fds, unix.PollFd{Fd: int32(q.fd), Events: unix.POLLIN})
		case *plainQueue:
			require.NoError(t, q.control(func(fd int) error {
				fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
				return nil
			}))
		}
	}
	n, err := unix.Poll(fds, 1000)
	require.NoError(t, err)
	require.Equal(t, 1, n, "queues with packets")
	for i, fd := range fds {
		if fd.Revents != 0 {
			return d.Queues()[i]
		}
	}
	return nil
}
