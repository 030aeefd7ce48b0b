package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/natless/natless/mapping"
)

// schema is the version of the buckets and records that this package knows. A
// file is of schemaWhole until what needs a later one is saved in it.
const (
	schemaWhole    = 1 // leases of whole addresses
	schemaRanges   = 2 // and of ranges
	schemaAttached = 3 // and attachments, and labels of leases
	schema         = schemaAttached
)

// contents is what a reading of the whole file found besides what is asked
// for.
type contents struct {
	pageSize int64
	schema   uint32
	leases   int                // of all addresses, then
	past     uint64             // leases in the history
	clients  map[[16]byte]place // that have a lease, and of what
}

// read holds every byte of the database that matters against what this package
// writes, and collects what is to be loaded in saved unless that is nil. The
// error is a damage if the file is not a whole one of ours, a newer if it is
// from the future, and else about reading.
func read(f *os.File, saved *mapping.Saved) (contents, error) {
	info, err := f.Stat()
	if err != nil {
		return contents{}, err
	}
	l, err := readLayout(f, info.Size())
	if err != nil {
		return contents{}, err
	}
	c := contents{pageSize: int64(l.pageSize), clients: map[[16]byte]place{}}
	var want total
	if c.schema, want, err = readMetaBucket(l); err != nil {
		return c, err
	}
	buckets := dataBuckets(c.schema)
	if len(l.roots) != 1+len(buckets) {
		return c, damaged("there are %d buckets", len(l.roots))
	}
	var got total
	count := map[string]uint64{}
	for _, name := range buckets {
		err := l.bucket(name, func(key, record []byte) error {
			payload, err := unseal(name, key, record)
			if err != nil {
				return err
			}
			got.add(record)
			count[name]++
			lease, err := check(name, key, payload, saved)
			if err == nil && (lease.First != 0 && c.schema < schemaRanges || lease.Label != "" && c.schema < schemaAttached) {
				err = malformed(name)
			}
			if err != nil || !lease.IPv6.IsValid() || !lease.Until.IsZero() {
				return err
			}
			if _, twice := c.clients[lease.IPv6.As16()]; twice {
				return damaged("%v has two leases at once", lease.IPv6)
			}
			c.clients[lease.IPv6.As16()] = placeOf(key)
			return nil
		})
		if err != nil {
			return c, err
		}
	}
	switch {
	case got != want:
		return c, damaged("records are missing")
	case count[bucketHistory]+count[bucketRanges] != count[bucketEnded]:
		return c, damaged("the history disagrees with its order by time")
	}
	c.leases, c.past = int(count[bucketLeases]), count[bucketEnded]
	return c, nil
}

// check decodes a record, collects it, and returns the lease that it is.
func check(bucket string, key, payload []byte, saved *mapping.Saved) (mapping.SavedLease, error) {
	var none mapping.SavedLease
	switch bucket {
	case bucketMaps:
		m, err := decodeMap(key, payload)
		if err == nil && saved != nil {
			saved.Maps = append(saved.Maps, m)
		}
		return none, err
	case bucketLeases:
		lease, err := decodeLease(key, payload)
		if err == nil && saved != nil {
			saved.Leases = append(saved.Leases, lease)
		}
		return lease, err
	case bucketHistory, bucketRanges:
		past, err := decodePast(bucket, key, payload)
		past.IPv6 = netip.Addr{} // who had it has none
		return past, err
	case bucketAttached:
		a, err := decodeAttachment(key, payload)
		if err == nil && saved != nil {
			saved.Attachments = append(saved.Attachments, a)
		}
		return none, err
	case bucketEnded:
		if n := len(key) - 8; n != addressSize && n != placeSize || len(payload) != 0 {
			return none, malformed(bucketEnded)
		}
	}
	return none, nil
}

// newer is why a file is left as it is: a later version of natless made it.
type newer uint32

func (n newer) Error() string {
	return fmt.Sprintf("its schema is version %d, made by a newer natless; this one knows version %d: use the newer one, or another state.dir",
		uint32(n), schema)
}

// readMetaBucket checks the schema before anything that it may change, and is
// the total of what the other buckets must hold.
func readMetaBucket(l *layout) (version uint32, want total, err error) {
	payloads := map[string][]byte{}
	err = l.bucket(bucketMeta, func(key, record []byte) error {
		p, err := unseal(bucketMeta, key, record)
		payloads[string(key)] = bytes.Clone(p)
		return err
	})
	if err != nil {
		return 0, want, err
	}
	if len(payloads[keySchema]) != 4 {
		return 0, want, malformed(bucketMeta)
	}
	version = binary.BigEndian.Uint32(payloads[keySchema])
	switch {
	case version > schema:
		return 0, want, newer(version)
	case version < schemaWhole:
		return 0, want, damaged("a schema of version %d never was", version)
	}
	if len(payloads) != 2 {
		return 0, want, malformed(bucketMeta)
	}
	want, err = decodeTotal(payloads[keyTotal])
	return version, want, err
}

func isDamage(err error) bool {
	var d damage
	return errors.As(err, &d)
}
