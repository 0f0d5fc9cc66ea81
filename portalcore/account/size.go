package account

import (
	"math"
	"reflect"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Size estimates how many bytes of memory an account holds. What it holds
// several times over by one pointer (the metadata of a price that many items
// have) counts once.
func Size(a *billing.Account) int64 {
	s := sizer{seen: map[uintptr]bool{}}
	return s.flat(reflect.TypeFor[billing.Account]()) + s.behind(reflect.ValueOf(a).Elem())
}

// weigh is an account's part of the cache's bound.
func weigh(customer string, s Snapshot) uint32 {
	const entry = 512 // of the cache's own, about
	return uint32(min(Size(&s.Account)+int64(len(customer))+entry, math.MaxUint32))
}

type sizer struct{ seen map[uintptr]bool }

func (s *sizer) flat(t reflect.Type) int64 { return int64(t.Size()) }

// first reports whether what p points at is met for the first time.
func (s *sizer) first(p uintptr) bool {
	if s.seen[p] {
		return false
	}
	s.seen[p] = true
	return true
}

var timeType = reflect.TypeFor[time.Time]()

// behind adds up what v refers to, without v itself.
func (s *sizer) behind(v reflect.Value) int64 {
	var n int64
	switch v.Kind() {
	case reflect.String:
		n = int64(v.Len())
	case reflect.Pointer:
		if !v.IsNil() && s.first(v.Pointer()) {
			n = s.flat(v.Type().Elem()) + s.behind(v.Elem())
		}
	case reflect.Slice:
		if v.Len() > 0 && s.first(v.Pointer()) {
			n = int64(v.Cap()) * s.flat(v.Type().Elem())
			for i := range v.Len() {
				n += s.behind(v.Index(i))
			}
		}
	case reflect.Map:
		if v.Len() > 0 && s.first(v.Pointer()) {
			const slack = 2 // maps are half full on the way
			n = slack * int64(v.Len()) * (s.flat(v.Type().Key()) + s.flat(v.Type().Elem()))
			for it := v.MapRange(); it.Next(); {
				n += s.behind(it.Key()) + s.behind(it.Value())
			}
		}
	case reflect.Struct:
		if v.Type() == timeType { // all times share their location
			break
		}
		for _, field := range v.Fields() {
			n += s.behind(field)
		}
	}
	return n
}
