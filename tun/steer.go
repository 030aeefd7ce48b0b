package tun

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// steer has the kernel choose the queue of a packet by what does not change
// while a connection lasts. Left alone it chooses the queue that an answer was
// last written to, and since the two sides of a connection are two flows to
// it, each of which moves the other, packets would overtake each other.
func steer(fd, queues, rings int) error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "natless_steer", Type: ebpf.SocketFilter, License: "Apache-2.0", Instructions: steering(queues, rings),
	})
	if err != nil {
		return fmt.Errorf("load the steering program: %w", err)
	}
	defer program.Close() // the device has its own reference
	return setSteering(fd, program.FD())
}

// unsteer leaves the choice to the kernel.
func unsteer(fd int) error { return setSteering(fd, -1) }

func setSteering(fd, program int) error {
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETSTEERINGEBPF, program); err != nil {
		return fmt.Errorf("TUNSETSTEERINGEBPF: %w", err)
	}
	return nil
}

// steering is a program that gives the number of a packet's ring. The rings of
// queue q are q, q + queues, q + 2 queues and so on.
//
// The queue of TCP and UDP goes by their two ports in any order: they are the
// same in both directions and on both sides, so that one worker has all of a
// connection. That of the rest goes by the server's IPv4 address, the source of
// IPv4 and, behind a prefix of 96 bits, the end of an IPv6 destination, and of a
// fragment too since only the first has the ports.
//
// Which of the queue's rings it is goes by the client: the source of IPv6, the
// destination of IPv4. However many connections a flood has, it fills one ring
// of each queue, and other clients have others.
func steering(queues, rings int) asm.Instructions {
	const (
		packet  = asm.R6 // where the loads below want it
		hash    = asm.R7
		first   = asm.R8
		client  = asm.R9
		loaded  = asm.R0 // where they put what they load, in host byte order
		tcp     = unix.IPPROTO_TCP
		udp     = unix.IPPROTO_UDP
		notOnly = 0x3fff // IPv4: more fragments, or an offset
		golden  = -0x61c88647
	)
	// The upper bits of a product depend on all bits of the number, and are far
	// apart for numbers that follow each other, as ports and addresses do. An
	// IPv6 address has several numbers that may, so each has a factor of its own.
	factors := [...]int32{-0x6e1ef25b, -0x3ec05657, -0x7a143595, golden}
	choose := func(by asm.Register, among int) asm.Instructions {
		return asm.Instructions{asm.Mov.Reg32(by, by), asm.Mul.Imm(by, int32(among)), asm.RSh.Imm(by, 32)}
	}
	program := asm.Instructions{
		asm.Mov.Reg(packet, asm.R1),
		asm.Mov.Imm(hash, 0),
		asm.Mov.Imm(client, 0),
		asm.LoadAbs(0, asm.Byte),
		asm.Mov.Reg(first, loaded),
		asm.RSh.Imm(loaded, 4),
		asm.JEq.Imm(loaded, 6, "ipv6"),

		asm.LoadAbs(16, asm.Word),
		asm.Mov.Reg(client, loaded),
		asm.Mul.Imm32(client, golden),
		asm.LoadAbs(6, asm.Half),
		asm.And.Imm(loaded, notOnly),
		asm.JNE.Imm(loaded, 0, "server4"),
		asm.LoadAbs(9, asm.Byte),
		asm.JEq.Imm(loaded, tcp, "ports4"),
		asm.JEq.Imm(loaded, udp, "ports4"),
		asm.LoadAbs(12, asm.Word).WithSymbol("server4"),
		asm.Mov.Reg(hash, loaded),
		asm.Ja.Label("choose"),
		asm.And.Imm(first, 0xf).WithSymbol("ports4"),
		asm.LSh.Imm(first, 2),
		asm.LoadInd(loaded, first, 0, asm.Word),
		asm.Ja.Label("ports"),

		asm.Mov.Imm(client, 0).WithSymbol("ipv6"),
	}
	for i, factor := range factors {
		program = append(program, asm.LoadAbs(int32(8+4*i), asm.Word), asm.Mul.Imm(loaded, factor), asm.Add.Reg(client, loaded))
	}
	program = append(program,
		asm.LoadAbs(6, asm.Byte),
		asm.JEq.Imm(loaded, tcp, "ports6"),
		asm.JEq.Imm(loaded, udp, "ports6"),
		asm.LoadAbs(36, asm.Word),
		asm.Mov.Reg(hash, loaded),
		asm.Ja.Label("choose"),
		asm.LoadAbs(40, asm.Word).WithSymbol("ports6"),
		asm.Mov.Reg(hash, loaded).WithSymbol("ports"),
		asm.RSh.Imm(hash, 16),
		asm.And.Imm(loaded, 0xffff),
		asm.Xor.Reg(hash, loaded),
		asm.Mov.Reg(loaded, hash).WithSymbol("choose"),
		asm.Mul.Imm32(loaded, golden),
	)
	program = append(program, choose(loaded, queues)...)
	program = append(program, choose(client, rings)...)
	return append(program,
		asm.Mul.Imm32(client, int32(queues)),
		asm.Add.Reg32(loaded, client),
		asm.Return(),
	)
}
