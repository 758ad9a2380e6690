package objectstore

// Waiting returns the number of goroutines that wait for a lock.
func (r *Repo) Waiting() int { return int(r.waiting.Load()) }

// Fresh returns the number of commits that the next step of an execution looks at.
func (p *PrunePlan) Fresh() int { return len(p.fresh) }
