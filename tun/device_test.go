package tun

import (
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/natless/natless/internal/testenv"
)

// The tests below run on a thread of their own in a network namespace of its
// own, which ends with the test:
//
//	socket 192.0.2.1 ── nl0 (the device) ── the test as 192.0.2.2 and beyond
//	                └── nl1 (forwarding)  ── 198.51.100.0/24

const (
	off   = 64
	needs = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
)

// inNamespace runs f as root in a new network namespace, or skips.
func inNamespace(t testing.TB, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		testenv.Skip(t, "network namespaces need root")
	}
	done := make(chan struct{})
	go func() {
		defer close(done) // also on FailNow
		runtime.LockOSThread()
		// Never unlocked: the thread ends with the goroutine, and the
		// namespace with the thread.
		ns, err := netns.New()
		if err != nil {
			testenv.Skip(t, "no network namespace to be had: "+err.Error())
		}
		defer ns.Close()
		fd, err := openControl()
		if err != nil {
			testenv.Skip(t, err.Error())
		}
		unix.Close(fd)
		f()
	}()
	<-done
}

func open(t testing.TB, c Config) *Device {
	t.Helper()
	d, err := Open(c)
	require.NoError(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

// up gives a device an address and switches it on, without the packets that the
// kernel would send by itself.
func up(t testing.TB, d *Device, cidr string) {
	t.Helper()
	link, err := netlink.LinkByIndex(d.Index())
	require.NoError(t, err)
	sysctl(t, "ipv6/conf/"+d.Name()+"/disable_ipv6", "1")
	sysctl(t, "ipv4/conf/"+d.Name()+"/rp_filter", "0")
	addr, err := netlink.ParseAddr(cidr)
	require.NoError(t, err)
	require.NoError(t, netlink.AddrAdd(link, addr))
	require.NoError(t, netlink.LinkSetUp(link))
}

func sysctl(t testing.TB, name, value string) {
	t.Helper()
	require.NoError(t, os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
}

// persistent makes the operator's device, as `ip tuntap add` does.
func persistent(t testing.TB, name string, flags uint16) {
	t.Helper()
	fd := hold(t, name, unix.IFF_TUN|unix.IFF_NO_PI|flags)
	require.NoError(t, unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
	require.NoError(t, unix.Close(fd))
}

// hold opens a device past this package, as another process would.
func hold(t testing.TB, name string, flags uint16) int {
	t.Helper()
	fd, err := openControl()
	require.NoError(t, err)
	ifr, err := unix.NewIfreq(name)
	require.NoError(t, err)
	ifr.SetUint16(flags)
	require.NoError(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr))
	return fd
}

// connected is a UDP socket from 192.0.2.1 to 192.0.2.2 port 9.
func connected(t testing.TB) int {
	t.Helper()
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(s) })
	require.NoError(t, unix.Connect(s, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{192, 0, 2, 2}}))
	return s
}

// tcpPacket is an IPv4 TCP packet to 198.51.100.1 with an unfinished checksum.
func tcpPacket(payload int) []byte {
	b := make([]byte, 40+payload)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], []byte{192, 0, 2, 2, 198, 51, 100, 1})
	binary.BigEndian.PutUint16(b[10:], ^sum(b[:20]))
	binary.BigEndian.PutUint16(b[20:], 4000)
	binary.BigEndian.PutUint16(b[22:], 80)
	b[32], b[33] = 5<<4, 0x10
	pseudo := append([]byte{}, b[12:20]...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(20+payload))
	binary.BigEndian.PutUint16(b[36:], sum(pseudo))
	for i := range payload {
		b[40+i] = byte(i * 7)
	}
	return b
}

func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func TestOpenAndClose(t *testing.T) {
	inNamespace(t, func() {
		d := open(t, Config{Name: "nl0", Queues: 2, Offload: true})
		f := d.Features()
		assert.True(t, f.VNetHdr && f.Checksum && f.TSO && f.MultiQueue && !f.Adopted, "%+v", f)
		assert.Len(t, d.Queues(), 2)
		link, err := netlink.LinkByName("nl0")
		require.NoError(t, err)
		assert.Equal(t, link.Attrs().Index, d.Index())
		assert.Equal(t, "nl0", d.Name())

		require.NoError(t, d.Close())
		require.NoError(t, d.Close())
		_, err = netlink.LinkByName("nl0")
		assert.ErrorAs(t, err, &netlink.LinkNotFoundError{})
		_, _, err = d.Queues()[0].Read(make([]byte, off+MaxPacket), off)
		assert.Equal(t, os.ErrClosed, err)
		assert.Equal(t, os.ErrClosed, d.Queues()[0].Write(make([]byte, off+20), off, 20, Header{}))
	})
}

// A queue of several rings gives what is in one by turns with what is in the
// others, and what is in one in order. What one has no room for costs the others
// nothing.
func TestRingsTakeTurns(t *testing.T) {
	inNamespace(t, func() {
		d := open(t, Config{Name: "nl0", Queues: 1, Rings: 4, Offload: true})
		if !d.Features().Steering {
			assert.Equal(t, 1, d.Features().Rings)
			testenv.Skip(t, "no program can be attached to a TUN device here")
		}
		assert.Equal(t, 4, d.Features().Rings)
		assert.Len(t, d.Queues(), 1)
		up(t, d, "192.0.2.1/24")
		_, err := Open(Config{Name: "nl0", Queues: 1, Rings: 4, Offload: true})
		assert.ErrorIs(t, err, errHeld)

		flood, other := connected(t), connected(t) // two ports
		require.NoError(t, unix.Connect(other, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{192, 0, 2, 3}}))
		for i := range 600 {
			_, err := unix.Write(flood, []byte{byte(i), byte(i >> 8)})
			require.NoError(t, err)
		}
		for i := range 40 {
			_, err := unix.Write(other, []byte{byte(i), byte(i >> 8)})
			require.NoError(t, err)
		}
		assert.EqualValues(t, 100, d.Drops())
		q, buf, next := d.Queues()[0], make([]byte, off+MaxPacket), [4]int{}
		for next[3] < 40 {
			_, _, err := q.Read(buf, off)
			require.NoError(t, err)
			client := buf[off+19]
			require.EqualValues(t, next[client], binary.LittleEndian.Uint16(buf[off+28:]), "order")
			next[client]++
		}
		assert.LessOrEqual(t, next[2], 40+turn, "packets of the flood that came before the last of the others")
		for next[2] < 500 {
			_, _, err := q.Read(buf, off)
			require.NoError(t, err)
			next[2]++
		}
		q.Wake()
		_, _, err = q.Read(buf, off)
		assert.Equal(t, ErrWoken, err, "and then there is no more")
		require.NoError(t, d.Close())
		_, err = netlink.LinkByName("nl0")
		assert.ErrorAs(t, err, &netlink.LinkNotFoundError{})
	})
}

// ReadMore gives what is left of a turn, and then or where there is nothing says
// so at once. What comes after is Read's.
func TestReadMoreIsOfOneTurn(t *testing.T) {
	inNamespace(t, func() {
		d := open(t, Config{Name: "nl0", Queues: 1, Offload: true})
		up(t, d, "192.0.2.1/24")
		s, q, buf := connected(t), d.Queues()[0], make([]byte, off+MaxPacket)
		_, _, ok := q.ReadMore(buf, off)
		assert.False(t, ok, "no turn has begun")
		for i := range turn + 3 {
			_, err := unix.Write(s, []byte{byte(i)})
			require.NoError(t, err)
		}
		q.Wake() // which is of the next turn
		next := byte(0)
		for _, left := range []int{turn, 3} {
			_, _, err := q.Read(buf, off)
			for errors.Is(err, ErrWoken) {
				_, _, err = q.Read(buf, off)
			}
			require.NoError(t, err)
			for ok, n := true, 1; ok; n++ {
				assert.Equal(t, next, buf[off+28])
				next++
				if _, _, ok = q.ReadMore(buf, off); !ok {
					assert.Equal(t, left, n)
				}
			}
		}
		require.NoError(t, d.Close())
		_, _, ok = q.ReadMore(buf, off)
		assert.False(t, ok)
	})
}

// A queue that is to let packets gather does so once, loses none, and hears that
// it is woken or closed.
func TestGather(t *testing.T) {
	inNamespace(t, func() {
		d := open(t, Config{Name: "nl0", Queues: 1, Offload: true})
		up(t, d, "192.0.2.1/24")
		s, q, buf := connected(t), d.Queues()[0], make([]byte, off+MaxPacket)
		var longest time.Duration // signals cut some short
		for range 20 {
			_, _, ok := q.ReadMore(buf, off)
			require.False(t, ok, "the turn is over")
			_, err := unix.Write(s, []byte("there"))
			require.NoError(t, err)
			q.Gather()
			start := time.Now()
			_, _, err = q.Read(buf, off)
			longest = max(longest, time.Since(start))
			require.NoError(t, err)
			assert.False(t, q.(*rawQueue).gather)
		}
		assert.GreaterOrEqual(t, longest, gatherFor)
		q.Gather()
		q.Wake()
		_, _, err := q.Read(buf, off)
		assert.Equal(t, ErrWoken, err)
		// Where a ring has more than its turn, nobody sleeps.
		for range 2 * turn {
			_, err := unix.Write(s, []byte("there"))
			require.NoError(t, err)
		}
		for range turn + 1 {
			_, _, err := q.Read(buf, off)
			require.NoError(t, err)
			q.Gather()
		}
		assert.True(t, q.(*rawQueue).gather)
		go d.Close()
		for err == nil || errors.Is(err, ErrWoken) {
			_, _, err = q.Read(buf, off)
		}
		assert.Equal(t, os.ErrClosed, err)
	})
}

// A UDP socket that sends with UDP_SEGMENT: what leaves it in one piece arrives
// in one piece.
func TestReadsUDPSuperPacket(t *testing.T) {
	inNamespace(t, func() {
		d := open(t, Config{Name: "nl0", Queues: 1, Offload: true})
		if !d.Features().USO {
			testenv.Skip(t, "this kernel has no USO on TUN devices (Linux 6.2)")
		}
		up(t, d, "192.0.2.1/24")
		s := connected(t)
		require.NoError(t, unix.SetsockoptInt(s, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000))
		payload := make([]byte, 50_000)
		for i := range payload {
			payload[i] = byte(i % 251)
		}
		_, err := unix.Write(s, payload)
		require.NoError(t, err)

		buf := make([]byte, off+MaxPacket)
		n, h, err := d.Queues()[0].Read(buf, off)
		require.NoError(t, err)
		assert.Equal(t, 28+len(payload), n)
		assert.Equal(t, payload, buf[off+28:off+n])
		assert.EqualValues(t, unix.VIRTIO_NET_HDR_GSO_UDP_L4, h.GSOType)
		assert.EqualValues(t, needs, h.Flags)
		assert.EqualValues(t, 1000, h.GSOSize)
		assert.EqualValues(t, 20, h.CsumStart)
		assert.EqualValues(t, 6, h.CsumOffset)
	})
}

// A TCP super-packet written to one device is forwarded out of another whole,
// and cut into finished segments where that has no offloads.
func TestForwardsTCPSuperPacket(t *testing.T) {
	inNamespace(t, func() {
		for _, offload := range []bool{true, false} {
			a := open(t, Config{Name: "nl0", Queues: 2, Offload: true})
			b := open(t, Config{Name: "nl1", Queues: 1, Offload: offload})
			up(t, a, "192.0.2.1/24")
			up(t, b, "198.51.100.254/24")
			sysctl(t, "ipv4/ip_forward", "1")
			sysctl(t, "ipv4/conf/all/rp_filter", "0")

			packet := tcpPacket(20_000)
			out := append(make([]byte, off), packet...)
			h := Header{Flags: needs, GSOType: unix.VIRTIO_NET_HDR_GSO_TCPV4, HdrLen: 40, GSOSize: 1000, CsumStart: 20, CsumOffset: 16}
			require.NoError(t, a.Queues()[1].Write(out, off, len(packet), h))

			in := make([]byte, off+MaxPacket)
			var payload []byte
			for len(payload) < 20_000 {
				n, got, err := b.Queues()[0].Read(in, off)
				require.NoError(t, err)
				payload = append(payload, in[off+40:off+n]...)
				if offload {
					require.Equal(t, len(packet), n)
					assert.Equal(t, h.GSOType, got.GSOType)
					assert.Equal(t, h.GSOSize, got.GSOSize)
					assert.Equal(t, h.CsumStart, got.CsumStart)
				} else {
					require.Equal(t, 1040, n)
					assert.Zero(t, got)
				}
			}
			assert.Equal(t, packet[40:], payload)
			require.NoError(t, a.Close())
			require.NoError(t, b.Close())
		}
	})
}

func TestCloseWakesReaders(t *testing.T) {
	inNamespace(t, func() {
		for _, offload := range []bool{true, false} {
			d := open(t, Config{Name: "nl0", Queues: 2, Offload: offload})
			errs := make(chan error)
			for _, q := range d.Queues() {
				go func() {
					_, _, err := q.Read(make([]byte, off+MaxPacket), off)
					errs <- err
				}()
			}
			time.Sleep(20 * time.Millisecond) // until they block
			go d.Close()
			require.NoError(t, d.Close())
			for range 2 {
				assert.Equal(t, os.ErrClosed, <-errs)
			}
		}
	})
}

func TestWake(t *testing.T) {
	inNamespace(t, func() {
		for _, offload := range []bool{true, false} {
			d := open(t, Config{Name: "nl0", Queues: 1, Offload: offload})
			up(t, d, "192.0.2.1/24")
			s, q := connected(t), d.Queues()[0]
			reads := make(chan error)
			go func() {
				defer close(reads)
				buf := make([]byte, off+MaxPacket)
				for {
					_, _, err := q.Read(buf, off)
					reads <- err
					if errors.Is(err, os.ErrClosed) {
						return
					}
				}
			}()
			quiet := func() {
				t.Helper()
				select {
				case err := <-reads:
					t.Errorf("Read returned once more: %v", err)
				case <-time.After(20 * time.Millisecond): // and Read waits
				}
			}
			quiet()
			for range 3 {
				q.Wake()
				assert.Equal(t, ErrWoken, <-reads)
				quiet()
			}

			// No packet is lost, and what comes between two Reads is told once.
			q.Wake()
			assert.Equal(t, ErrWoken, <-reads)
			_, err := unix.Write(s, []byte("there"))
			require.NoError(t, err)
			assert.NoError(t, <-reads)
			quiet()
			q.Wake()
			time.Sleep(5 * time.Millisecond) // until the reader tells of it
			q.Wake()
			q.Wake()
			assert.Equal(t, ErrWoken, <-reads)
			assert.Equal(t, ErrWoken, <-reads, "those in the meantime are one")
			quiet()

			require.NoError(t, d.Close())
			assert.Equal(t, os.ErrClosed, <-reads)
			q.Wake()
		}
	})
}

// No Wake is lost, whatever else goes on: each waits until it was heard.
func TestWakeUnderTraffic(t *testing.T) {
	inNamespace(t, func() {
		for _, offload := range []bool{true, false} {
			d := open(t, Config{Name: "nl0", Queues: 1, Offload: offload})
			up(t, d, "192.0.2.1/24")
			s, q := connected(t), d.Queues()[0]
			woken, done := make(chan struct{}, 1), make(chan struct{})
			var readers, wakers sync.WaitGroup
			readers.Go(func() {
				buf := make([]byte, off+MaxPacket)
				for {
					_, _, err := q.Read(buf, off)
					switch {
					case errors.Is(err, os.ErrClosed):
						return
					case errors.Is(err, ErrWoken):
						select {
						case woken <- struct{}{}:
						default:
						}
					case err != nil:
						t.Error(err)
						return
					}
				}
			})
			wakers.Go(func() { // traffic, with pauses in which Read waits
				for i := 0; ; i++ {
					select {
					case <-done:
						return
					default:
					}
					_, _ = unix.Write(s, make([]byte, 100))
					if i%50 == 0 {
						time.Sleep(100 * time.Microsecond)
					}
				}
			})
			for range 2000 {
				q.Wake()
				select {
				case <-woken:
				case <-time.After(5 * time.Second):
					t.Fatal("a Wake was lost")
				}
			}
			close(done)
			wakers.Wait()
			for range 3 {
				wakers.Go(func() {
					for range 1000 {
						q.Wake()
					}
				})
			}
			assert.NoError(t, d.Close())
			wakers.Wait()
			readers.Wait()
		}
	})
}

// Readers, writers and closers at the same time, for the race detector.
func TestCloseUnderTraffic(t *testing.T) {
	inNamespace(t, func() {
		for _, offload := range []bool{true, false} {
			d := open(t, Config{Name: "nl0", Queues: 2, Offload: offload})
			up(t, d, "192.0.2.1/24")
			s := connected(t)
			var wg sync.WaitGroup
			for _, q := range d.Queues() {
				wg.Go(func() {
					buf := make([]byte, off+MaxPacket)
					for {
						n, h, err := q.Read(buf, off)
						if err == nil {
							err = q.Write(buf, off, n, h)
						}
						if errors.Is(err, os.ErrClosed) {
							return
						}
					}
				})
			}
			for i := range 500 {
				_, _ = unix.Write(s, make([]byte, 100))
				if i == 400 {
					wg.Go(func() { d.Close() })
				}
			}
			assert.NoError(t, d.Close())
			wg.Wait()
		}
	})
}

func TestDeletedDeviceEndsRead(t *testing.T) {
	inNamespace(t, func() {
		for _, offload := range []bool{true, false} {
			d := open(t, Config{Name: "nl0", Queues: 2, Offload: offload})
			errs := make(chan error)
			go func() {
				_, _, err := d.Queues()[0].Read(make([]byte, off+MaxPacket), off)
				errs <- err
			}()
			time.Sleep(20 * time.Millisecond)
			link, err := netlink.LinkByName("nl0")
			require.NoError(t, err)
			require.NoError(t, netlink.LinkDel(link))
			assert.ErrorIs(t, <-errs, unix.EBADFD)
			assert.NoError(t, d.Close())
		}
	})
}

func TestWriteErrorsCanBeTold(t *testing.T) {
	inNamespace(t, func() {
		for _, offload := range []bool{true, false} {
			d := open(t, Config{Name: "nl0", Queues: 1, Offload: offload})
			q := d.Queues()[0]
			buf := append(make([]byte, off), tcpPacket(10)...)
			assert.ErrorIs(t, q.Write(buf, off, 50, Header{}), unix.EIO, "the device is down")
			up(t, d, "192.0.2.1/24")
			assert.NoError(t, q.Write(buf, off, 50, Header{}))
			buf[off] = 0
			assert.ErrorIs(t, q.Write(buf, off, 50, Header{}), unix.EINVAL, "neither IPv4 nor IPv6")
			if offload {
				err := q.Write(append(make([]byte, off), tcpPacket(10)...), off, 50, Header{HdrLen: 60})
				assert.ErrorIs(t, err, unix.EINVAL, "the header is longer than the packet")
				assert.EqualError(t, err, "write to the TUN device: invalid argument")
			}
			require.NoError(t, d.Close())
		}
	})
}

func TestShortBufferIsAnError(t *testing.T) {
	inNamespace(t, func() {
		for _, offload := range []bool{true, false} {
			d := open(t, Config{Name: "nl0", Queues: 1, Offload: offload})
			up(t, d, "192.0.2.1/24")
			_, err := unix.Write(connected(t), make([]byte, 200))
			require.NoError(t, err)
			_, _, err = d.Queues()[0].Read(make([]byte, off+100), off)
			assert.Equal(t, errTooBig, err)
			require.NoError(t, d.Close())
		}
	})
}

func TestWithoutOffload(t *testing.T) {
	inNamespace(t, func() {
		d := open(t, Config{Name: "nl0", Queues: 2})
		assert.Equal(t, Features{MultiQueue: true, Rings: 1, Steering: d.Features().Steering}, d.Features())
		require.Len(t, d.Queues(), 2)
		require.NoError(t, d.Queues()[1].Close()) // the kernel sends everything through the other one
		up(t, d, "192.0.2.1/24")
		s := connected(t)
		_, err := unix.Write(s, []byte("there"))
		require.NoError(t, err)
		q := d.Queues()[0]
		buf := make([]byte, off+MaxPacket)
		n, h, err := q.Read(buf, off)
		require.NoError(t, err)
		assert.Equal(t, Header{}, h)
		assert.Equal(t, make([]byte, off), buf[:off], "what is in front of the packet is left alone")
		assert.Equal(t, "there", string(buf[off+28:off+n]))

		// And back: addresses and ports exchanged leave the checksums right.
		copy(buf[off+12:], []byte{192, 0, 2, 2, 192, 0, 2, 1})
		src, dst := binary.BigEndian.Uint16(buf[off+20:]), binary.BigEndian.Uint16(buf[off+22:])
		binary.BigEndian.PutUint16(buf[off+20:], dst)
		binary.BigEndian.PutUint16(buf[off+22:], src)
		require.NoError(t, q.Write(buf, off, n, Header{GSOType: 99}))
		answer := make([]byte, 10)
		n, err = unix.Read(s, answer)
		require.NoError(t, err)
		assert.Equal(t, "there", string(answer[:n]))
	})
}

func TestHeldDeviceIsRefused(t *testing.T) {
	inNamespace(t, func() {
		for _, queues := range []int{1, 2} {
			for _, offload := range []bool{true, false} {
				d := open(t, Config{Name: "nl0", Queues: queues, Offload: offload})
				_, err := Open(Config{Name: "nl0", Queues: queues, Offload: offload})
				assert.ErrorContains(t, err, "nl0 as TUN device: another process holds it open")
				require.NoError(t, d.Close())
			}
		}
		for _, flags := range []uint16{0, unix.IFF_MULTI_QUEUE} {
			persistent(t, "nl1", flags)
			fd := hold(t, "nl1", unix.IFF_TUN|unix.IFF_NO_PI|flags)
			for _, offload := range []bool{true, false} {
				_, err := Open(Config{Name: "nl1", Queues: 2, Offload: offload})
				assert.ErrorIs(t, err, errHeld)
				assert.ErrorContains(t, err, "nl1")
			}
			require.NoError(t, unix.Close(fd))
			link, err := netlink.LinkByName("nl1")
			require.NoError(t, err, "the operator's device is still there")
			require.NoError(t, netlink.LinkDel(link))
		}
	})
}

func TestOtherLinkOfThatNameIsRefused(t *testing.T) {
	inNamespace(t, func() {
		require.NoError(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
		_, err := Open(Config{Name: "br0"})
		assert.ErrorContains(t, err, "of type bridge")
		fd := hold(t, "tap0", unix.IFF_TAP)
		defer unix.Close(fd)
		_, err = Open(Config{Name: "tap0"})
		assert.ErrorContains(t, err, "TAP")
	})
}

func TestPersistentDeviceIsAdoptedAndLeft(t *testing.T) {
	inNamespace(t, func() {
		for _, multi := range []bool{true, false} {
			flags, queues := uint16(0), 1
			if multi {
				flags, queues = unix.IFF_MULTI_QUEUE, 2
			}
			persistent(t, "nl0", flags)
			link, err := netlink.LinkByName("nl0")
			require.NoError(t, err)

			d := open(t, Config{Name: "nl0", Queues: 2, Rings: 3, Offload: true})
			f := d.Features()
			assert.True(t, f.Adopted && f.TSO && f.MultiQueue == multi, "%+v", f)
			assert.Len(t, d.Queues(), queues)
			assert.Equal(t, multi && f.Steering, f.Rings == 3, "%+v", f)
			assert.Equal(t, link.Attrs().Index, d.Index())
			require.NoError(t, d.Close())
			assertLeft(t)

			// A reader that was killed: its offloads are still on.
			fd := hold(t, "nl0", unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR|flags)
			require.NoError(t, setOffload(fd)(offloadTSO))
			require.NoError(t, unix.Close(fd))
			active, err := activeFeatures("nl0")
			require.NoError(t, err)
			require.True(t, active["tx-tcp-segmentation"])

			d = open(t, Config{Name: "nl0", Queues: 2})
			assert.Equal(t, Features{Rings: 1, MultiQueue: multi, Adopted: true}, d.Features())
			require.NoError(t, d.Close())
			assertLeft(t)
			require.NoError(t, netlink.LinkDel(link))
		}
	})
}

// assertLeft: nl0 is there, nobody holds it, and nothing of ours is in force.
func assertLeft(t testing.TB) {
	t.Helper()
	_, err := find("nl0")
	assert.NoError(t, err)
	active, err := activeFeatures("nl0")
	require.NoError(t, err)
	for _, f := range []string{"tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-udp-segmentation"} {
		assert.False(t, active[f], f)
	}
}

func TestWithoutPrivilege(t *testing.T) {
	inNamespace(t, func() {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		require.NoError(t, unix.Capget(&header, &caps[0]))
		caps[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		require.NoError(t, unix.Capset(&header, &caps[0])) // of this thread
		for _, offload := range []bool{true, false} {
			_, err := Open(Config{Name: "nl0", Offload: offload})
			assert.ErrorIs(t, err, unix.EPERM)
			assert.ErrorContains(t, err, "CAP_NET_ADMIN is needed, run as root")
		}
	})
}

func TestWithoutDeviceNode(t *testing.T) {
	inNamespace(t, func() {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil { // of this thread
			testenv.Skip(t, "no mount namespace to be had: "+err.Error())
		}
		require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		require.NoError(t, unix.Mount("none", "/dev/net", "tmpfs", 0, ""))
		_, err := Open(Config{Name: "nl0", Offload: true})
		assert.ErrorIs(t, err, unix.ENOENT)
		assert.ErrorContains(t, err, "open /dev/net/tun")
		assert.ErrorContains(t, err, "modprobe tun")
	})
}

func TestNoAllocations(t *testing.T) {
	inNamespace(t, func() {
		d := open(t, Config{Name: "nl0", Queues: 1, Offload: true})
		up(t, d, "192.0.2.1/24")
		s, q := connected(t), d.Queues()[0]
		out, buf := make([]byte, 100), make([]byte, off+MaxPacket)
		assert.Zero(t, testing.AllocsPerRun(100, func() {
			_, _ = unix.Write(s, out)
			n, h, err := q.Read(buf, off)
			if err != nil || q.Write(buf, off, n, h) != nil {
				t.Fatal(err)
			}
		}))
		assert.Zero(t, testing.AllocsPerRun(100, func() {
			_, _ = unix.Write(s, out)
			q.Gather()
			_, _, err := q.Read(buf, off)
			if _, _, ok := q.ReadMore(buf, off); err != nil || ok {
				t.Fatal("there is one")
			}
		}))
		packet := append(make([]byte, off), tcpPacket(10)...)
		assert.Zero(t, testing.AllocsPerRun(100, func() {
			if q.Write(packet, off, 50, Header{HdrLen: 60}) == nil { // refused packets are not dearer
				t.Fatal("accepted")
			}
		}))
		read := make(chan struct{})
		go func() {
			defer close(read)
			for range 101 {
				_, _, _ = q.Read(buf, off)
			}
		}()
		assert.Zero(t, testing.AllocsPerRun(100, func() {
			time.Sleep(time.Millisecond) // until the reader polls
			_, _ = unix.Write(s, out)
		}))
		<-read
	})
}

// What nobody reads in time is dropped, and counted.
func TestDropsAreCounted(t *testing.T) {
	inNamespace(t, func() {
		persistent(t, "nl0", 0)
		for range 2 { // the second reader counts from where it began
			d := open(t, Config{Name: "nl0", Queues: 1})
			up(t, d, "192.0.2.1/24")
			s := connected(t)
			assert.Zero(t, d.Drops())
			link, err := netlink.LinkByName("nl0")
			require.NoError(t, err)
			for range link.Attrs().TxQLen + 7 {
				_, _ = unix.Write(s, make([]byte, 100))
			}
			assert.EqualValues(t, 7, d.Drops())
			require.NoError(t, d.Close())
			assert.Zero(t, (&Device{index: 1 << 20}).Drops(), "a device that is gone")
			addrs, err := netlink.AddrList(link, unix.AF_INET)
			require.NoError(t, err)
			require.NoError(t, netlink.AddrDel(link, &addrs[0]))
		}
	})
}
