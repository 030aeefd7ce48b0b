package store

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math"
	"net/netip"
	"time"

	"github.com/natless/natless/mapping"
)

// The buckets of the database and their records. All numbers are big-endian,
// all times nanoseconds since 1970, with the sign bit turned over in keys so
// that they sort.
//
//	meta     "schema"                    version of all this, 4 bytes
//	         "total"                     count and sum of checksums of all records in the other buckets
//	maps     IPv4 address, its bits      IPv6 address, its bits, label, origin
//	leases   place                       IPv6 address, since, until, flags, last port, label
//	history  IPv4 address, until         IPv6 address, since, label
//	ranges   place, until                IPv6 address, since, last port, label: the history of ranges of ports
//	ended    until, place                nothing: the history by time
//	attached ID                          a mapping.Attachment as JSON
//
// A place is an IPv4 address or, of a range of its ports, that and the first
// port. Only what is of a range has a last port. A file that never held a range
// is of schema 1: it has no bucket of theirs, and natless of before reads it. So
// it does one of schema 2, which never held an attachment or a lease with a
// label, and has no bucket for the former.
//
// Each value is a version byte, what the table says, and a CRC-32C of bucket,
// key and value. A lost or stale page of whole records is found by the total.
const (
	bucketMeta    = "meta"
	bucketMaps    = "maps"
	bucketLeases  = "leases"
	bucketHistory = "history"
	bucketRanges  = "ranges"
	bucketEnded   = "ended"

	bucketAttached = "attached"

	keySchema = "schema"
	keyTotal  = "total"

	recordVersion = 1
	sumSize       = 4

	flagProven = 1
	flagEnded  = 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// dataBuckets are the buckets of a schema but bucketMeta.
func dataBuckets(schema uint32) []string {
	list := []string{bucketMaps, bucketLeases, bucketHistory, bucketEnded}
	if schema >= schemaRanges {
		list = append(list, bucketRanges)
	}
	if schema >= schemaAttached {
		list = append(list, bucketAttached)
	}
	return list
}

// place is what a lease is of, as keys have it, but always with a port.
type place [placeSize]byte

const (
	addressSize = 4
	placeSize   = addressSize + 2
)

func placeOf(key []byte) (p place) {
	copy(p[:], key)
	return p
}

func (p place) key() []byte {
	if p[addressSize] == 0 && p[addressSize+1] == 0 {
		return p[:addressSize]
	}
	return p[:]
}

// historyOf is the bucket of what a lease of a place leaves behind.
func historyOf(place []byte) string {
	if len(place) == placeSize {
		return bucketRanges
	}
	return bucketHistory
}

func checksum(bucket string, key, value []byte) uint32 {
	c := crc32.Update(0, castagnoli, []byte(bucket))
	c = crc32.Update(c, castagnoli, key)
	return crc32.Update(c, castagnoli, value)
}

// seal makes a record of what it is to hold.
func seal(bucket string, key, payload []byte) []byte {
	v := append([]byte{recordVersion}, payload...)
	return binary.BigEndian.AppendUint32(v, checksum(bucket, key, v))
}

// sumOf is the checksum that a record carries.
func sumOf(record []byte) uint64 {
	return uint64(binary.BigEndian.Uint32(record[len(record)-sumSize:]))
}

// unseal is what a record holds. It is valid as long as the record.
func unseal(bucket string, key, record []byte) ([]byte, error) {
	if len(record) < 1+sumSize {
		return nil, damaged("a record in bucket %q is cut off", bucket)
	}
	body := record[:len(record)-sumSize]
	switch {
	case uint64(checksum(bucket, key, body)) != sumOf(record):
		return nil, damaged("the checksum of a record in bucket %q is wrong", bucket)
	case body[0] != recordVersion:
		return nil, damaged("a record in bucket %q is of version %d", bucket, body[0])
	}
	return body[1:], nil
}

// malformed is for records with a good checksum and a content that is not of
// this schema.
func malformed(bucket string) error { return damaged("a record in bucket %q is malformed", bucket) }

// nanos is a time as records have it.
func nanos(t time.Time) (uint64, error) {
	if t.Before(time.Unix(0, math.MinInt64)) || t.After(time.Unix(0, math.MaxInt64)) {
		return 0, fmt.Errorf("time %v cannot be kept", t)
	}
	return sortable(t.UnixNano()), nil
}

func sortable(n int64) uint64 { return uint64(n) ^ 1<<63 }

func timeOf(n uint64) time.Time { return time.Unix(0, int64(n^1<<63)).UTC() }

func mapKey(p netip.Prefix) []byte {
	a := p.Addr().As4()
	return append(a[:], byte(p.Bits()))
}

func checkIPv4(p netip.Prefix) error {
	if !p.IsValid() || !p.Addr().Is4() {
		return fmt.Errorf("%v is not an IPv4 prefix", p)
	}
	return nil
}

func encodeMap(m mapping.Map) (key, payload []byte, err error) {
	if err := checkIPv4(m.IPv4); err != nil {
		return nil, nil, err
	}
	if !m.IPv6.IsValid() || !m.IPv6.Addr().Is6() {
		return nil, nil, fmt.Errorf("%v is not an IPv6 prefix", m.IPv6)
	}
	a := m.IPv6.Addr().As16()
	payload = append(a[:], byte(m.IPv6.Bits()))
	for _, s := range []string{m.Label, m.Origin} {
		payload = append(binary.AppendUvarint(payload, uint64(len(s))), s...)
	}
	return mapKey(m.IPv4), payload, nil
}

func decodeMap(key, payload []byte) (m mapping.Map, err error) {
	if len(key) != 5 || len(payload) < 17 {
		return m, malformed(bucketMaps)
	}
	m.IPv4 = netip.PrefixFrom(netip.AddrFrom4([4]byte(key)), int(key[4]))
	m.IPv6 = netip.PrefixFrom(netip.AddrFrom16([16]byte(payload)), int(payload[16]))
	rest := payload[17:]
	for _, s := range []*string{&m.Label, &m.Origin} {
		n, size := binary.Uvarint(rest)
		if size <= 0 || n > uint64(len(rest)-size) {
			return m, malformed(bucketMaps)
		}
		*s, rest = string(rest[size:size+int(n)]), rest[size+int(n):]
	}
	if !m.IPv4.IsValid() || !m.IPv6.IsValid() || len(rest) > 0 {
		return m, malformed(bucketMaps)
	}
	return m, nil
}

const leaseSize = 16 + 8 + 8 + 1

func encodeLease(l mapping.SavedLease) (key, payload []byte, err error) {
	if !l.IPv4.Is4() {
		return nil, nil, fmt.Errorf("%v is not an IPv4 address", l.IPv4)
	}
	if l.First > l.Last || l.First == 0 && l.Last != 0 {
		return nil, nil, fmt.Errorf("%d to %d is not a range of ports", l.First, l.Last)
	}
	if !l.IPv6.Is6() || l.IPv6.Zone() != "" {
		return nil, nil, fmt.Errorf("%v is not an IPv6 address without a zone", l.IPv6)
	}
	if len(l.Label) > mapping.MaxLabel {
		return nil, nil, fmt.Errorf("label of %d bytes: expected at most %d", len(l.Label), mapping.MaxLabel)
	}
	since, err := nanos(l.Since)
	if err != nil {
		return nil, nil, err
	}
	var until uint64
	var flags byte
	if l.Proven {
		flags |= flagProven
	}
	if !l.Until.IsZero() {
		flags |= flagEnded
		if until, err = nanos(l.Until); err != nil {
			return nil, nil, err
		}
	}
	a, client := l.IPv4.As4(), l.IPv6.As16()
	payload = binary.BigEndian.AppendUint64(client[:], since)
	payload = binary.BigEndian.AppendUint64(payload, until)
	key, payload = a[:], append(payload, flags)
	if l.First != 0 {
		key = binary.BigEndian.AppendUint16(key, l.First)
		payload = binary.BigEndian.AppendUint16(payload, l.Last)
	}
	return key, append(payload, l.Label...), nil
}

// decodePlace is what a lease of a place is of. rest is what must be left of
// its payload: the last port of a range, and the label.
func decodePlace(key, rest []byte) (l mapping.SavedLease, ok bool) {
	switch {
	case len(key) == addressSize:
	case len(key) == placeSize && len(rest) >= 2:
		l.First, l.Last = binary.BigEndian.Uint16(key[addressSize:]), binary.BigEndian.Uint16(rest)
		if l.First == 0 || l.First > l.Last {
			return l, false
		}
		rest = rest[2:]
	default:
		return l, false
	}
	l.IPv4, l.Label = netip.AddrFrom4([4]byte(key)), string(rest)
	return l, len(rest) <= mapping.MaxLabel
}

func decodeLease(key, payload []byte) (l mapping.SavedLease, err error) {
	if len(payload) < leaseSize || payload[leaseSize-1] > flagProven|flagEnded {
		return l, malformed(bucketLeases)
	}
	l, ok := decodePlace(key, payload[leaseSize:])
	if !ok {
		return l, malformed(bucketLeases)
	}
	flags := payload[leaseSize-1]
	l.IPv6 = netip.AddrFrom16([16]byte(payload))
	l.Since = timeOf(binary.BigEndian.Uint64(payload[16:]))
	l.Proven = flags&flagProven != 0
	if flags&flagEnded != 0 {
		l.Until = timeOf(binary.BigEndian.Uint64(payload[24:]))
	}
	return l, nil
}

// pastKeys are the keys of an ended lease in the history and by time, made of
// its record among the leases.
func pastKeys(key, payload []byte) (history, ended, past []byte) {
	until := payload[24:32]
	history = append(append(history, key...), until...)
	ended = append(append(ended, until...), key...)
	return history, ended, append(payload[:24:24], payload[leaseSize:]...)
}

func decodePast(bucket string, key, payload []byte) (l mapping.SavedLease, err error) {
	if len(key) < 8 || len(payload) < 24 || historyOf(key[:len(key)-8]) != bucket {
		return l, malformed(bucket)
	}
	place, until := key[:len(key)-8], key[len(key)-8:]
	l, ok := decodePlace(place, payload[24:])
	if !ok {
		return l, malformed(bucket)
	}
	l.IPv6 = netip.AddrFrom16([16]byte(payload))
	l.Since = timeOf(binary.BigEndian.Uint64(payload[16:]))
	l.Until = timeOf(binary.BigEndian.Uint64(until))
	l.Proven = true
	return l, nil
}

func encodeAttachment(a mapping.Attachment) (key, payload []byte, err error) {
	if err := a.Check(); err != nil {
		return nil, nil, fmt.Errorf("attachment: %w", err)
	}
	payload, err = json.Marshal(a)
	return []byte(a.ID), payload, err
}

func decodeAttachment(key, payload []byte) (a mapping.Attachment, err error) {
	if json.Unmarshal(payload, &a) != nil || a.ID != string(key) || a.Check() != nil {
		return a, malformed(bucketAttached)
	}
	return a, nil
}

// total is the count and the sum of checksums of all records but those of
// bucketMeta.
type total struct{ count, sum uint64 }

func (t *total) add(record []byte)  { t.count++; t.sum += sumOf(record) }
func (t *total) drop(record []byte) { t.count--; t.sum -= sumOf(record) }

func (t total) encode() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, t.count), t.sum)
}

func decodeTotal(b []byte) (total, error) {
	if len(b) != 16 {
		return total{}, malformed(bucketMeta)
	}
	return total{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}, nil
}
