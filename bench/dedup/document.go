package dedup

// A Document is a report as JSON. Its keys are a stable interface.
type Document struct {
	Platform string            `json:"platform"`
	Images   []DocumentImage   `json:"images"`
	Kinds    []DocumentKind    `json:"kinds"`
	Failed   []DocumentFailure `json:"failed,omitempty"`

	Layers      int   `json:"layers"`
	Unique      int   `json:"unique_layers"`
	Blobs       int64 `json:"blob_bytes"`
	UniqueBlobs int64 `json:"unique_blob_bytes"`
	Tars        int64 `json:"tar_bytes"`
	UniqueTars  int64 `json:"unique_tar_bytes"`

	// Over distinct layers.
	HardLinks  DocumentSum `json:"hard_links"`
	EmptyFiles int64       `json:"empty_files"`
	Symlinks   int64       `json:"symlinks"`
	Devices    int64       `json:"devices"`
	Whiteouts  int64       `json:"whiteouts"`
	LinksBelow int64       `json:"links_below"`

	Block  int64 `json:"block_bytes"`
	Hashes int   `json:"hashes"`
}

// A DocumentSum is a number of files or chunks.
type DocumentSum struct {
	Count int64 `json:"count"`
	Bytes int64 `json:"bytes"`
	Disk  int64 `json:"disk_bytes"`
}

// A DocumentKind is what remains of all images if one kind of thing is kept once. Ratios are 0 if nothing remains.
type DocumentKind struct {
	Kind string `json:"kind"`
	DocumentSum
	Ratio     float64 `json:"dedup_ratio"`
	Saved     int64   `json:"saved_bytes"`
	DiskRatio float64 `json:"disk_dedup_ratio"`
	DiskSaved int64   `json:"saved_disk_bytes"`
}

// A DocumentImage is an image and what it adds to those before it.
type DocumentImage struct {
	Name     string        `json:"name"`
	Layers   int           `json:"layers"`
	Blobs    int64         `json:"blob_bytes"`
	Tars     int64         `json:"tar_bytes"`
	NewBlobs int64         `json:"new_blob_bytes"`
	New      []DocumentNew `json:"new"`
}

// A DocumentNew is what an image adds in one kind.
type DocumentNew struct {
	Kind string `json:"kind"`
	DocumentSum
}

// A DocumentFailure is an image that could not be measured.
type DocumentFailure struct {
	Name  string `json:"name"`
	Error string `json:"error"`
}

// NewDocument returns the document of a report on images for a platform. failed lists all images that are not in the
// report.
func NewDocument(r *Report, platform string, failed []*ImageError) *Document {
	out := &Document{
		Platform:    platform,
		Images:      []DocumentImage{},
		Layers:      r.Layers,
		Unique:      r.UniqueLayers,
		Blobs:       r.Blobs,
		UniqueBlobs: r.UniqueBlobs,
		Tars:        r.Tars,
		UniqueTars:  r.UniqueTars,
		HardLinks:   DocumentSum(r.HardLinks),
		EmptyFiles:  r.Others.EmptyFiles,
		Symlinks:    r.Others.Symlinks,
		Devices:     r.Others.Devices,
		Whiteouts:   r.Others.Whiteouts,
		LinksBelow:  r.Others.LinksBelow,
		Block:       BlockSize,
		Hashes:      r.Hashes,
	}
	all := r.Kinds[Images]
	for _, k := range Kinds() {
		left := r.Kinds[k]
		saved := all.Minus(left)
		out.Kinds = append(out.Kinds, DocumentKind{
			Kind: k.String(), DocumentSum: DocumentSum(left),
			Ratio: ratio(all.Bytes, left.Bytes), Saved: saved.Bytes,
			DiskRatio: ratio(all.Disk, left.Disk), DiskSaved: saved.Disk,
		})
	}
	for _, img := range r.Images {
		row := DocumentImage{Name: img.Name, Layers: img.Layers, Blobs: img.Blobs, Tars: img.Tars, NewBlobs: img.NewBlobs}
		for _, k := range Kinds() {
			row.New = append(row.New, DocumentNew{k.String(), DocumentSum(img.New[k])})
		}
		out.Images = append(out.Images, row)
	}
	for _, f := range failed {
		out.Failed = append(out.Failed, DocumentFailure{f.Name, f.Err.Error()})
	}
	return out
}

func ratio(all, left int64) float64 {
	if left <= 0 {
		return 0
	}
	return float64(all) / float64(left)
}
