package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// measurement is one thing that is measured.
type measurement struct {
	name, title, unit string
	iperf             []string // nil: ping
	needs             string
	lower             bool // less is better
}

var measurements = []measurement{
	{name: "tcp", title: "one TCP stream", unit: "Gbit/s", iperf: []string{}},
	{name: "tcp-reverse", title: "one TCP stream, server to client", unit: "Gbit/s", iperf: []string{"-R"}},
	{name: "tcp-4", title: "four TCP streams", unit: "Gbit/s", iperf: []string{"-P", "4"}},
	{name: "udp-64", title: "UDP, 64 bytes, as many as the sender can", unit: "kpackets/s", iperf: []string{"-u", "-b", "0", "-l", "64"}},
	{name: "udp-512", title: "UDP, 512 bytes, as many as the sender can", unit: "kpackets/s", iperf: []string{"-u", "-b", "0", "-l", "512"}},
	{name: "udp-1400", title: "UDP, 1400 bytes, as many as the sender can", unit: "kpackets/s", iperf: []string{"-u", "-b", "0", "-l", "1400"}},
	{name: "rtt", title: "round-trip time, p50", unit: "µs", needs: "ping", lower: true},
}

// result is one measurement in one round. Figures that do not apply are zero.
type result struct {
	Round     int      `json:"round"`
	Contender string   `json:"contender"`
	Measure   string   `json:"measure"`
	Value     float64  `json:"value"` // in Unit
	Unit      string   `json:"unit"`
	Loss      float64  `json:"loss_percent,omitempty"`
	P99       float64  `json:"p99_us,omitempty"`
	CPUPacket *float64 `json:"cpu_us_per_packet,omitempty"` // of the translator's processes
	CPUMiB    *float64 `json:"cpu_us_per_mib,omitempty"`
	Bytes     int64    `json:"bytes,omitempty"`     // received
	Packets   int64    `json:"packets,omitempty"`   // received
	Forwarded int64    `json:"forwarded,omitempty"` // UDP: what left the host for the server
	Error     string   `json:"error,omitempty"`
}

func (r result) String() string {
	if r.Error != "" {
		return "failed: " + r.Error
	}
	s := fmt.Sprintf("%.4g %s", r.Value, r.Unit)
	if strings.HasPrefix(r.Measure, "udp") {
		s += fmt.Sprintf(", %.1f%% lost", r.Loss)
	}
	if r.P99 != 0 {
		s += fmt.Sprintf(", p99 %.0f µs", r.P99)
	}
	return s
}

// measureAll builds a testbed for c and measures everything in it. A contender
// that does not come up has failed every measurement.
func measureAll(ctx context.Context, c contender, ms []measurement, seconds int, progress func(result)) (all []result) {
	var t testbed
	defer t.close()
	broken := t.build(ctx, c)
	for _, m := range ms {
		if ctx.Err() != nil {
			return all
		}
		r := result{Contender: c.name, Measure: m.name, Unit: m.unit}
		err := broken
		if err == nil {
			err = t.measure(ctx, c, m, seconds, &r)
		}
		if ctx.Err() != nil {
			return all
		}
		if err != nil {
			r.Error = err.Error()
		}
		progress(r)
		all = append(all, r)
	}
	return all
}

func (t *testbed) measure(ctx context.Context, c contender, m measurement, seconds int, r *result) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds+8)*time.Second)
	defer cancel()
	if m.iperf == nil {
		return t.ping(ctx, c.target, seconds, r)
	}
	spent, _ := t.cpu()
	sent := t.sent()
	if err := t.iperf(ctx, c.target, m.iperf, seconds, r); err != nil {
		return err
	}
	now, any := t.cpu()
	bytes := float64(r.Bytes)
	if r.Packets > 0 {
		// What the receiver then drops has cost the translator as much.
		r.Forwarded = t.sent() - sent
		bytes *= float64(r.Forwarded) / float64(r.Packets)
	}
	if us := float64((now - spent).Microseconds()); any && bytes > 0 {
		r.CPUMiB = new(us / (bytes / (1 << 20)))
		if r.Forwarded > 0 {
			r.CPUPacket = new(us / float64(r.Forwarded))
		}
	}
	return nil
}

// iperf runs a server for one test and a client against it.
func (t *testbed) iperf(ctx context.Context, target string, args []string, seconds int, r *result) error {
	server := command(ctx, t.s, "iperf3", "-s", "-1")
	if err := server.Start(); err != nil {
		return err
	}
	defer kill(server)
	time.Sleep(200 * time.Millisecond) // until it listens
	args = append([]string{"iperf3", "-J", "-c", target, "-t", strconv.Itoa(seconds), "--connect-timeout", "3000"}, args...)
	out, err := command(ctx, t.c, args...).Output()
	if perr := parseIperf(out, r); perr != nil {
		return errors.Join(perr, err)
	}
	return nil
}

// parseIperf fills r from iperf3's JSON.
func parseIperf(out []byte, r *result) error {
	type sum struct {
		Bytes   int64
		Seconds float64
		Bits    float64 `json:"bits_per_second"`
		Packets int64
		Lost    int64   `json:"lost_packets"`
		Percent float64 `json:"lost_percent"`
	}
	var v struct {
		Error string
		End   struct {
			Sum      *sum
			Received *sum `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(out, &v); err != nil {
		return fmt.Errorf("read iperf3's answer: %w", err)
	}
	switch s := v.End.Sum; {
	case v.Error != "":
		return fmt.Errorf("iperf3: %s", v.Error)
	case s != nil: // UDP
		if s.Packets == 0 || s.Seconds == 0 {
			return errors.New("iperf3 counted no packets")
		}
		r.Packets, r.Loss = s.Packets-s.Lost, s.Percent
		r.Bytes = s.Bytes / s.Packets * r.Packets
		r.Value = float64(r.Packets) / s.Seconds / 1e3
	case v.End.Received != nil:
		r.Bytes, r.Value = v.End.Received.Bytes, v.End.Received.Bits/1e9
	default:
		return errors.New("iperf3 gave no result")
	}
	return nil
}

// ping fills r with round-trip times on an idle path.
func (t *testbed) ping(ctx context.Context, target string, seconds int, r *result) error {
	cmd := command(ctx, t.c, "ping", "-i", "0.005", "-c", strconv.Itoa(seconds*200), "-w", strconv.Itoa(seconds), target)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) { // some lost is exit 1
		return err
	}
	times := pingTimes(out)
	if len(times) == 0 {
		return fmt.Errorf("ping had no answer: %s", strings.TrimSpace(stderr.String()))
	}
	slices.Sort(times)
	r.Value, r.P99 = times[len(times)/2], times[len(times)*99/100]
	r.Packets = int64(len(times))
	return nil
}

var pingTime = regexp.MustCompile(`time=([0-9.]+) ms`)

func pingTimes(out []byte) (us []float64) {
	for _, m := range pingTime.FindAllSubmatch(out, -1) {
		if ms, err := strconv.ParseFloat(string(m[1]), 64); err == nil {
			us = append(us, ms*1000)
		}
	}
	return us
}
