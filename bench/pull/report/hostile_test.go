package report

import "strings"

// hostile returns a report in which every text attempts an injection.
func hostile() *Report {
	const script = `<script>document.title = "owned"</script>`
	image := `"><img src=x onerror='document.title="owned"'>|` + "\x1b[2J\n" + strings.Repeat("long", 40)
	r := example(6, 0.01, 3)
	for i := range r.Runs {
		if r.Runs[i].Image == r.Images[0].Name {
			r.Runs[i].Image = image
		}
		if r.Runs[i].Snapshotter == "ostree" {
			r.Runs[i].Snapshotter = script
		}
	}
	r.Images[0].Name = image
	r.Images[1].Digest = script
	r.Snapshotters[1] = script
	r.Workload = "</title>" + script
	r.Description = "</style>" + script
	r.Method = append(r.Method, "{{.}} "+script)
	r.Machine.CPU = strings.Repeat("W", 300)
	r.Machine.Programs = append(r.Machine.Programs, Program{script, "--><!--" + script})
	r.Failures = append(r.Failures, Failure{Image: image, Error: "first line\nsecond\r\x1b[31m " + script})
	return r
}
