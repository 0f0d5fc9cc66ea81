package billing

import "slices"

// MaxGrants bounds BalancePage.Grants.
const MaxGrants = 100

// OrderGrants puts the grants that can still be used first, keeps the order
// otherwise, and drops those beyond MaxGrants.
func OrderGrants(list []Grant) []Grant {
	slices.SortStableFunc(list, func(a, b Grant) int {
		switch x, y := a.Left.Amount > 0, b.Left.Amount > 0; {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
	return list[:min(len(list), MaxGrants)]
}
