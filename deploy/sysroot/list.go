package sysroot

import (
	"slices"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
)

// listWith returns the deployments after a new one of the stateroot joins those of the state. As in libostree pinned
// ones, those of other stateroots, the booted one and the one whose /etc was merged stay.
func (st *State) listWith(d, merge *Deployment, retain, notDefault bool) []*Deployment {
	var list []*Deployment
	added := false
	if !notDefault {
		list, added = append(list, d), true
	}
	// The last deployment that boots before the running system, or before the one that the new one replaces.
	crossover := st.Booted
	if crossover == nil {
		crossover = merge
	}
	crossed := false
	for _, o := range st.Deployments {
		crossed = crossed || o == crossover
		if retain || o.Pinned() || o.Stateroot != d.Stateroot || o == st.Booted || o == merge {
			list = append(list, o)
		}
		if !added && crossed {
			list, added = append(list, d), true
		}
	}
	if !added {
		list = append(list, d)
	}
	return list
}

// missingFrom returns the deployments of the state that are not in a list.
func (st *State) missingFrom(list []*Deployment) (missing []*Deployment) {
	for _, d := range st.Deployments {
		if !slices.Contains(list, d) {
			missing = append(missing, d)
		}
	}
	return missing
}

// at returns the deployment with an index.
func (st *State) at(index int) (*Deployment, error) {
	list := st.All()
	if index < 0 || index >= len(list) {
		return nil, &indexError{index, len(list)}
	}
	return list[index], nil
}

// equal reports whether two states have the same deployments in the same order.
func (st *State) equal(o *State) bool {
	if st.BootVersion != o.BootVersion || st.SubBootVersion != o.SubBootVersion ||
		!slices.EqualFunc(st.Deployments, o.Deployments, (*Deployment).same) {
		return false
	}
	if st.Staged == nil || o.Staged == nil {
		return st.Staged == nil && o.Staged == nil
	}
	return st.Staged.same(o.Staged.Deployment)
}

// sameBoot reports whether the entries of two deployments in the same place are equal but for ostree=: then one can
// replace the other without a new entry.
func sameBoot(a, b *Deployment) bool {
	sameTries := a.Tries == nil && b.Tries == nil || a.Tries != nil && b.Tries != nil && *a.Tries == *b.Tries
	return a.BootCsum == b.BootCsum && a.Stateroot == b.Stateroot && a.Version == b.Version && slices.Equal(a.Kargs, b.Kargs) &&
		slices.Equal(a.overlays, b.overlays) && slices.Equal(a.lasting(), b.lasting()) && sameTries
}

// lasting returns the extra fields of a deployment's entry, except two that libostree since 2025 writes into each entry
// for Android's boot loader, whether the files exist or not. They name the deployment's directory, and libostree writes
// no new entries for them.
func (d *Deployment) lasting() []bls.Field {
	return slices.DeleteFunc(slices.Clone(d.Extra), func(f bls.Field) bool { return f.Key == "aboot" || f.Key == "abootcfg" })
}

// sameBoots is sameBoot for lists.
func sameBoots(a, b []*Deployment) bool { return slices.EqualFunc(a, b, sameBoot) }

// bootSerials numbers deployments of the same kernel, across stateroots.
func bootSerials(list []*Deployment) []int {
	count := make(map[string]int)
	serials := make([]int, len(list))
	for i, d := range list {
		serials[i] = count[d.BootCsum]
		count[d.BootCsum]++
	}
	return serials
}
