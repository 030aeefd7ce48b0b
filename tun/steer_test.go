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

// load loads a steering program, or skips.
func load(t *testing.T, queues, rings int) *ebpf.Program {
	t.Helper()
	if os.Geteuid() != 0 {
		testenv.Skip(t, "loading a program into the kernel needs root")
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "Apache-2.0", Instructions: steering(queues, rings)})
	if errors.Is(err, unix.EPERM) {
		testenv.Skip(t, "no program can be loaded: "+err.Error())
	}
	require.NoError(t, err)
	t.Cleanup(func() { program.Close() })
	return program
}

// result is what a program says of a packet.
func result(t *testing.T, program *ebpf.Program, packet []byte) uint32 {
	t.Helper()
	n, _, err := program.Test(append(make([]byte, 14), packet...)) // an Ethernet header, taken off before it runs
	require.NoError(t, err)
	return n
}

func TestSteering(t *testing.T) {
	program := load(t, 4, 1)
	queue := func(packet string) uint32 { return result(t, program, parse(t, packet)) }

	want := queue(connection["IPv6 out"])
	for name, packet := range connection {
		assert.Equal(t, want, queue(packet), name)
	}

	// A datagram's fragments stay together, whichever has the ports.
	first := queue("45000028 0001 2000 3f 06 0000 c6336405 cb007102 9c40 01bb 0000000000000000")
	assert.Equal(t, first, queue("45000028 0001 00b9 3f 06 0000 c6336405 cb007102 ffff ffff 0000000000000000"))
	assert.Equal(t, first, queue("45000028 0002 4000 3f 01 0000 c6336405 cb007102 0000 0000 0000000000000000"), "ICMP")
	assert.Equal(t, queue("45000028 0002 4000 3f 01 0000 cb007102 c6336405 0000 0000 0000000000000000"),
		queue("60000000 0014 3a 40 20010db8000100000000000000000002 20010db80064000000000000cb007102 8000 0000 0000000000000000"), "ICMP and its answer")
	const fragment6 = "60000000 0014 2c 40 20010db8000100000000000000000002 20010db80064000000000000cb007102 0600 "
	assert.Equal(t, queue(fragment6+"0001 00000001 9c40 01bb 00000000"), queue(fragment6+"00b9 00000001 ffff ffff 00000000"))

	// Consecutive ports, as one host gives its connections, use all queues
	// alike.
	var used [4]int
	for port := range 1000 {
		packet := parse(t, connection["IPv4 out"])
		packet[20], packet[21] = byte((32768+2*port)>>8), byte(2*port)
		used[result(t, program, packet)]++
	}
	for _, n := range used {
		assert.InDelta(t, 250, n, 50, "%v", used)
	}
	assert.Zero(t, queue("45"), "too short to have a flow")
}

// A client's packets of one family share a ring whatever their ports, and
// the queue goes by the ports alone as it does without rings. Clients whose
// addresses follow each other have rings of their own.
func TestRingsGoByTheClient(t *testing.T) {
	const queues, rings = 2, 8
	one, all := load(t, queues, 1), load(t, queues, rings)
	for name, port := range map[string]int{"IPv6 out": 40, "IPv4 back": 22} {
		packet := parse(t, connection[name])
		last := 23 // of the client's address
		if name == "IPv4 back" {
			last = 19
		}
		var clients [rings]int
		for client := range 256 {
			packet[last] = byte(client)
			var own uint32
			for p := range 32 {
				packet[port] = byte(p)
				n := result(t, all, packet)
				require.Equal(t, result(t, one, packet), n%queues, "queue")
				if p == 0 {
					own = n / queues
					clients[own]++
				}
				require.Equal(t, own, n/queues, "ring of client %d by port %d", client, p)
			}
			before := parse(t, connection[name])
			before[last] = byte(client - 1)
			if client > 0 {
				require.NotEqual(t, own, result(t, all, before)/queues, "neighbours %d", client)
			}
		}
		for _, n := range clients {
			assert.InDelta(t, 256/rings, n, 8, "%s: %v", name, clients)
		}
	}
	fragment := parse(t, "45000028 0001 2000 3f 11 0000 cb007102 c6336405 9c40 01bb 0000000000000000")
	later := parse(t, "45000028 0001 00b9 3f 11 0000 cb007102 c6336405 ffff ffff 0000000000000000")
	assert.Equal(t, result(t, all, fragment), result(t, all, later))
	whole := parse(t, connection["IPv4 back"])
	copy(whole[12:], parse(t, "cb007102 c6336405"))
	assert.Equal(t, result(t, all, fragment)/queues, result(t, all, whole)/queues, "a fragment has its client's ring")
	// Neighbours have rings of their own also where the subnet's number counts
	// up, alone or with the host's.
	for host := range 2 {
		var before uint32
		for k := range 100 {
			packet := parse(t, connection["IPv6 out"])
			packet[15], packet[23] = byte(k), byte(k*host)
			ring := result(t, all, packet) / queues
			require.False(t, k > 0 && ring == before, "subnet %d", k)
			before = ring
		}
	}
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
			fds = append(fds, unix.PollFd{Fd: int32(q.rings[0]), Events: unix.POLLIN})
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
