package store

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/natless/natless/mapping"
)

// filled is a store with n leases.
func filled(b *testing.B, n int) *Store {
	s := open(b, b.TempDir())
	const part = 50_000
	for from := 0; from < n; from += part {
		var batch mapping.Batch
		for i := from; i < min(n, from+part); i++ {
			batch.Leases = append(batch.Leases, lent(i, past(0)))
		}
		if err := s.Save(batch); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

// BenchmarkSave saves so many leases at once, among 100,000: those of an
// address's last and next holder.
func BenchmarkSave(b *testing.B) {
	s := filled(b, 100_000)
	n := 0
	for _, size := range []int{1, 64} {
		b.Run(fmt.Sprintf("leases=%d", size), func(b *testing.B) {
			for b.Loop() {
				var batch mapping.Batch
				for range size {
					n++
					l := lent(2*rand.IntN(50_000), past(n))
					batch.Leases = append(batch.Leases, ended(l, past(n)), l)
				}
				if err := s.Save(batch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMillion opens a file of 1,000,000 leases, loads it, and asks for
// all of them at a time.
func BenchmarkMillion(b *testing.B) {
	const n = 1_000_000
	s := filled(b, n)
	info, err := os.Stat(s.path)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			s.Close()
			if s, err = Open(s.dir, month, quiet); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(info.Size())/n, "file-bytes/lease")
	})
	defer func() { s.Close() }()
	b.Run("load", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if saved, err := s.Load(); err != nil || len(saved.Leases) != n {
				b.Fatal(len(saved.Leases), err)
			}
		}
	})
	b.Run("history", func(b *testing.B) {
		for b.Loop() {
			got := 0
			if err := s.History(time.Now(), func(mapping.SavedLease) bool { got++; return true }); err != nil || got != n {
				b.Fatal(got, err)
			}
		}
	})
}
