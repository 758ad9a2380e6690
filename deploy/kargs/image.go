package kargs

import "slices"

// Update follows the changes of an image's own arguments (see [ParseDropIn]), from was to is: those that the image no
// longer has are removed, new ones are appended, and all take the order that they have in the image. All others belong
// to the machine, and stay where they are.
//
// An argument can be both: shared are those of was that the machine asks for too. The machine's stays when the image no
// longer has it. Update also returns the new shared ones: of is, those that were shared, and those that the list had
// before the image. An argument of was that the list does not have was deleted by the machine, and does not come back
// while the image has it.
func (l List) Update(was, is, shared List) (updated, nowShared List) {
	updated = slices.Clone(l)
	for _, s := range was.unique() {
		a := split(s)
		if i := updated.index(a); i >= 0 && is.index(a) < 0 && shared.index(a) < 0 {
			updated = slices.Delete(updated, i, i+1)
		}
	}
	var of List      // of the image alone, in its order
	var places []int // of those of them that the list has
	for _, s := range is.unique() {
		a := split(s)
		had, i := was.index(a) >= 0, updated.index(a)
		switch {
		case i >= 0 && (!had || shared.index(a) >= 0):
			nowShared = append(nowShared, s)
		case i >= 0:
			of, places = append(of, s), append(places, i)
		case !had:
			of = append(of, s)
		}
	}
	slices.Sort(places)
	for n, i := range places {
		updated[i] = of[n]
	}
	return append(updated, of[len(places):]...), nowShared
}

// Shared returns the arguments of an image that the machine asks for too, once the edits have turned one list into
// another. Shared are those that it asked for before.
func (e *Edits) Shared(before, after, image, shared List) (nowShared List) {
	asked := List(nil).Append(e.Set...).Append(e.Append...)
	for _, s := range image.unique() {
		a := split(s)
		had, has := before.count(a), after.count(a)
		switch {
		case has == 0:
		case had == 0 || shared.index(a) >= 0, has == 1 && asked.index(a) >= 0:
			nowShared = append(nowShared, s)
		}
	}
	return nowShared
}

// unique returns the list with the first of equal arguments.
func (l List) unique() (list List) { return list.AppendIfMissing(l...) }

// count returns the number of arguments that equal a.
func (l List) count(a arg) (n int) {
	for _, s := range l {
		if split(s) == a {
			n++
		}
	}
	return n
}
