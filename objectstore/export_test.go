package objectstore

// Waiting returns the number of goroutines that wait for a lock.
func (r *Repo) Waiting() int { return int(r.waiting.Load()) }
