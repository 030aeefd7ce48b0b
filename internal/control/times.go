package control

import (
	"slices"
	"time"

	"github.com/natless/natless/mapping"
)

// seconds is a time as all of them are told: in UTC, to the second.
func seconds(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// told is an answer with its times in one form. What it points to stays as it is.
func told(v any) any {
	switch v := v.(type) {
	case mapping.Lease:
		return *toldLease(&v)
	case PastLease:
		v.Since = seconds(v.Since)
		if !v.Until.IsZero() {
			v.Until = seconds(v.Until)
		}
		return v
	case mapping.Attachment:
		v.Since = seconds(v.Since)
		return v
	case mapping.Event:
		v.Time, v.Lease = seconds(v.Time), toldLease(v.Lease)
		return v
	case mapping.Explanation:
		v.Lease = toldLease(v.Lease)
		return v
	case Status:
		v.RA = slices.Clone(v.RA)
		for i := range v.RA {
			if !v.RA[i].Last.IsZero() {
				v.RA[i].Last = seconds(v.RA[i].Last)
			}
		}
		return v
	}
	return v
}

func toldLease(l *mapping.Lease) *mapping.Lease {
	if l == nil {
		return nil
	}
	told := *l
	told.Since = seconds(l.Since)
	return &told
}
