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
func steer(fd int) error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "natless_steer", Type: ebpf.SocketFilter, License: "Apache-2.0", Instructions: steering(),
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

// steering is a program that gives a number for a packet, of which the kernel
// takes the remainder by the count of queues. TCP and UDP go by their two ports
// in any order: they are the same in both directions and on both sides, so that
// one worker has all of a connection. The rest goes by the two addresses in any
// order, a fragment too since only the first has the ports.
func steering() asm.Instructions {
	const (
		packet  = asm.R6 // where the loads below want it
		hash    = asm.R7
		first   = asm.R8
		loaded  = asm.R0 // where they put what they load, in host byte order
		tcp     = unix.IPPROTO_TCP
		udp     = unix.IPPROTO_UDP
		notOnly = 0x3fff // IPv4: more fragments, or an offset
		golden  = -0x61c88647
	)
	program := asm.Instructions{
		asm.Mov.Reg(packet, asm.R1),
		asm.Mov.Imm(hash, 0),
		asm.LoadAbs(0, asm.Byte),
		asm.Mov.Reg(first, loaded),
		asm.RSh.Imm(loaded, 4),
		asm.JEq.Imm(loaded, 6, "ipv6"),

		asm.LoadAbs(6, asm.Half),
		asm.And.Imm(loaded, notOnly),
		asm.JNE.Imm(loaded, 0, "addresses4"),
		asm.LoadAbs(9, asm.Byte),
		asm.JEq.Imm(loaded, tcp, "ports4"),
		asm.JEq.Imm(loaded, udp, "ports4"),
		asm.LoadAbs(12, asm.Word).WithSymbol("addresses4"),
		asm.Mov.Reg(hash, loaded),
		asm.LoadAbs(16, asm.Word),
		asm.Xor.Reg(hash, loaded),
		asm.Ja.Label("spread"),
		asm.And.Imm(first, 0xf).WithSymbol("ports4"),
		asm.LSh.Imm(first, 2),
		asm.LoadInd(loaded, first, 0, asm.Word),
		asm.Ja.Label("ports"),

		asm.LoadAbs(6, asm.Byte).WithSymbol("ipv6"),
		asm.JEq.Imm(loaded, tcp, "ports6"),
		asm.JEq.Imm(loaded, udp, "ports6"),
	}
	for offset := int32(8); offset < 40; offset += 4 {
		program = append(program, asm.LoadAbs(offset, asm.Word), asm.Xor.Reg(hash, loaded))
	}
	return append(program,
		asm.Ja.Label("spread"),
		asm.LoadAbs(40, asm.Word).WithSymbol("ports6"),
		asm.Mov.Reg(hash, loaded).WithSymbol("ports"),
		asm.RSh.Imm(hash, 16),
		asm.And.Imm(loaded, 0xffff),
		asm.Xor.Reg(hash, loaded),

		// The upper bits of the product depend on all bits of the hash, the
		// lower ones do not.
		asm.Mov.Reg32(loaded, hash).WithSymbol("spread"),
		asm.Mul.Imm32(loaded, golden),
		asm.RSh.Imm32(loaded, 16),
		asm.Return(),
	)
}
