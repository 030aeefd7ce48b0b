package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

const (
	byIperf = "iperf3"
	byOwn   = "own"

	iperfPort = "5301"
)

// defaultTCP is iperf3 where it is installed, since readers know it.
func defaultTCP() string {
	if _, err := exec.LookPath(byIperf); err != nil {
		return byOwn
	}
	return byIperf
}

// iperf measures TCP streams by iperf3. The CPU time is that of the whole run,
// with its beginning.
func (t *testbed) iperf(ctx context.Context, streams int, what byte, d time.Duration) (figures, error) {
	seconds := max(1, int(d.Round(time.Second)/time.Second))
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds+8)*time.Second)
	defer cancel()
	server := t.server.Command(ctx, byIperf, "-s", "-1", "-p", iperfPort)
	if err := server.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_ = server.Process.Kill() // it ends with its one test, unless that failed
		_ = server.Wait()
	}()
	if err := pause(ctx, 200*time.Millisecond); err != nil { // until it listens
		return nil, err
	}
	args := []string{"-J", "-p", iperfPort, "-c", t.target, "-t", strconv.Itoa(seconds), "-P", strconv.Itoa(streams), "--connect-timeout", "3000"}
	if what == download {
		args = append(args, "-R")
	}
	client := t.client.Command(ctx, byIperf, args...)
	var out bytes.Buffer
	client.Stdout = &out
	before := t.cpu()
	failed := client.Run()
	spent := t.cpu() - before
	rate, received, err := parseIperf(out.Bytes())
	if err != nil {
		return nil, errors.Join(err, failed)
	}
	f := figures{gbit.key: rate / 1e9}
	if n := t.resident(); n > 0 {
		f[residentLoad.key] = mib(n)
	}
	if spent > 0 && received > 0 {
		f[cpuMiB.key] = float64(spent.Microseconds()) / mib(received)
	}
	return f, nil
}

// parseIperf reads iperf3's JSON: bits per second and bytes that the receiver
// had.
func parseIperf(out []byte) (rate float64, received int64, err error) {
	var v struct {
		Error string
		End   struct {
			Received *struct {
				Bytes int64
				Bits  float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(out, &v); err != nil {
		return 0, 0, fmt.Errorf("read iperf3's answer: %w", err)
	}
	switch {
	case v.Error != "":
		return 0, 0, fmt.Errorf("iperf3: %s", v.Error)
	case v.End.Received == nil || v.End.Received.Bytes == 0:
		return 0, 0, errNothing
	}
	return v.End.Received.Bits, v.End.Received.Bytes, nil
}
