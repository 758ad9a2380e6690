package browser

import (
	"bytes"
	"context"
	"image/png"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/report"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// A browser is a tab of Chromium without a window and without network access.
type browser struct {
	ctx context.Context

	mu       sync.Mutex
	trouble  []string // warnings, errors and exceptions
	requests []string
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	program := testenv.NeedsTool(t, "chromium")
	home := t.TempDir()                                                                   // for its profile, caches and crash dumps
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 3*time.Minute) // outlives the cleanup
	t.Cleanup(cancel)
	options := append(
		chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program),
		chromedp.NoSandbox, // the page is ours, and the sandbox does not work for root
		chromedp.DisableGPU,
		chromedp.Env("HOME="+home, "TMPDIR="+home, "XDG_CONFIG_HOME="+home, "XDG_CACHE_HOME="+home),
		chromedp.UserDataDir(filepath.Join(home, "profile")),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND"),
		chromedp.Flag("proxy-server", "127.0.0.1:9"), // in case a request names an address
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-domain-reliability", true),
		chromedp.Flag("hide-scrollbars", true),
	)
	ctx, stop := chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(stop) // waits for the process
	b := &browser{}
	b.ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(func() {
		if err := chromedp.Cancel(b.ctx); err != nil {
			t.Errorf("close the browser: %v", err)
		}
		cancel()
	})
	if err := chromedp.Listen(b.ctx, b.record); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	err := chromedp.Do(b.ctx, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, network.Enable, network.EnableParams{})
		return err
	}))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *browser) record(ev any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		b.trouble = append(b.trouble, "exception: "+ev.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		b.trouble = append(b.trouble, "console: "+string(ev.Type))
	case *log.EventEntryAdded:
		if ev.Entry.Level == log.EntryLevelWarning || ev.Entry.Level == log.EntryLevelError {
			b.trouble = append(b.trouble, string(ev.Entry.Level)+": "+ev.Entry.Text)
		}
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, ev.Request.URL)
	}
}

// show loads a page into a window of a given width.
func (b *browser) show(t *testing.T, page string, width int64, scheme string) {
	t.Helper()
	err := chromedp.Do(
		b.ctx,
		chromedp.EmulateViewport(width, 900),
		chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			return err
		}),
		chromedp.Navigate(page),
	)
	if err != nil {
		t.Fatalf("show %s: %v", page, err)
	}
}

func eval[T any](t *testing.T, b *browser, expression string) T {
	t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatalf("evaluate %s: %v", expression, err)
	}
	return v
}

// screenshot takes a screenshot of the whole page and checks its size. go test -artifacts -outputdir DIR keeps it.
func (b *browser) screenshot(t *testing.T, name string, width, height int) {
	t.Helper()
	shot, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(t.ArtifactDir(), name+".png"), shot, 0o644); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		t.Fatalf("decode screenshot: %v", err)
	}
	if size := img.Bounds().Size(); size.X != width || size.Y < height {
		t.Errorf("screenshot has %d × %d pixels, want %d × %d or higher", size.X, size.Y, width, height)
	}
}

// layoutFaults finds texts and bars that reach out of a chart, texts that overlap others or a bar, and bars without a
// size.
const layoutFaults = `(() => {
  const faults = [];
  const apart = (a, b) => a.right <= b.left + .5 || b.right <= a.left + .5 || a.bottom <= b.top + .5 || b.bottom <= a.top + .5;
  for (const svg of document.querySelectorAll('svg')) {
    const all = svg.getBoundingClientRect();
    const say = (what, e) => faults.push(what + ': ' + e.outerHTML.slice(0, 120) + ' in ' + svg.getAttribute('aria-label'));
    if (all.width < 200 || all.height < 20) say('small', svg);
    if (all.left < 0 || all.right > innerWidth + .5) say('out of the window', svg);
    const texts = [...svg.querySelectorAll('text')];
    for (const e of [...texts, ...svg.querySelectorAll('.track, .fill, .whisker')]) {
      const r = e.getBoundingClientRect();
      if (!(r.width > 0 && r.height > 0)) say('no size', e);
      if (r.left < all.left - .5 || r.right > all.right + .5 || r.top < all.top - .5 || r.bottom > all.bottom + .5) say('out of the chart', e);
    }
    texts.forEach((a, i) => {
      const box = a.getBoundingClientRect();
      for (const b of [...texts.slice(i + 1), ...svg.querySelectorAll('.track')])
        if (!apart(box, b.getBoundingClientRect())) say('overlaps ' + b.outerHTML.slice(0, 80), a);
      if (box.height < 11) say('too small to read', a);
    });
  }
  return faults;
})()`

func writeFile(t *testing.T, name string, write func(*bytes.Buffer) error) (address string) {
	t.Helper()
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return (&url.URL{Scheme: "file", Path: path}).String()
}

// readReport reads a golden report of package report.
func readReport(t *testing.T, name string) *report.Report {
	t.Helper()
	f, err := os.Open(filepath.Join("../../bench/pull/report/testdata", name+".json.golden"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := report.ReadJSON(f)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestBrowser checks the page as a reader sees it.
func TestBrowser(t *testing.T) {
	b := newBrowser(t)
	r := readReport(t, "example")
	page := writeFile(t, "report.html", func(w *bytes.Buffer) error { return report.WriteHTML(w, r) })
	s := report.Summarize(r)
	type subject struct {
		metric report.Metric
		image  string
		state  report.State
	}
	charts := make(map[subject]bool)
	for _, f := range s.Figures {
		charts[subject{f.Metric, f.Image, f.State}] = true
	}
	background := make(map[string]string)
	for _, view := range []struct {
		name   string
		width  int
		scheme string
	}{
		{"light", 1280, "light"},
		{"dark", 1280, "dark"},
		{"phone", 390, "light"},
		{"phone-dark", 390, "dark"},
	} {
		b.show(t, page, int64(view.width), view.scheme)
		b.screenshot(t, view.name, view.width, 2000)
		if got, want := eval[int](t, b, `document.querySelectorAll('svg').length`), len(charts); got != want {
			t.Errorf("%s: %d charts, want %d", view.name, got, want)
		}
		if got, want := eval[int](t, b, `document.querySelectorAll('svg .fill').length`), len(s.Figures); got != want {
			t.Errorf("%s: %d bars, want %d", view.name, got, want)
		}
		for _, fault := range eval[[]string](t, b, layoutFaults) {
			t.Errorf("%s: %s", view.name, fault)
		}
		// Check again with all details closed and open.
		for _, open := range []string{"false", "true"} {
			eval[bool](t, b, `document.querySelectorAll('details').forEach(d => { d.open = `+open+` }), true`)
			if got := eval[int](t, b, `document.documentElement.scrollWidth`); got > view.width {
				t.Errorf("%s: the page is %d wide, its window %d; details open: %s", view.name, got, view.width, open)
			}
		}
		background[view.scheme] = eval[string](t, b, `getComputedStyle(document.body).backgroundColor`)
	}
	if background["light"] == background["dark"] {
		t.Errorf("the background is %s in light and dark", background["light"])
	}
	b.check(t, page)
}

// check checks that the browser requested nothing but the file, and reported no errors.
func (b *browser) check(t *testing.T, file string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.trouble {
		t.Errorf("the browser reports: %s", s)
	}
	for _, address := range b.requests {
		if address != file {
			t.Errorf("request for %s", address)
		}
	}
	if len(b.requests) == 0 {
		t.Error("no request was recorded, not even that for the file")
	}
}

// TestBrowserHostile loads pages of reports that attempt injections.
func TestBrowserHostile(t *testing.T) {
	b := newBrowser(t)
	page := writeFile(t, "report.html", func(w *bytes.Buffer) error { return report.WriteHTML(w, readReport(t, "hostile")) })
	for _, width := range []int{390, 1280} {
		b.show(t, page, int64(width), "light")
		if got := eval[int](t, b, `document.querySelectorAll('script, img, iframe, [onerror], [onload]').length`); got != 0 {
			t.Errorf("%d elements came out of names", got)
		}
		if title := eval[string](t, b, `document.title`); title == "owned" {
			t.Errorf("a script ran: title %q", title)
		}
		if got := eval[int](t, b, `document.documentElement.scrollWidth`); got > width {
			t.Errorf("the page is %d wide, its window %d", got, width)
		}
		for _, fault := range eval[[]string](t, b, layoutFaults) {
			t.Error(fault)
		}
	}
	b.check(t, page)
}

// TestBrowserChart checks the chart in its own file.
func TestBrowserChart(t *testing.T) {
	b := newBrowser(t)
	r := readReport(t, "example")
	chart := writeFile(t, "unpack.svg", func(w *bytes.Buffer) error {
		return report.SVGChart(w, r, report.Unpack, report.Cold, report.Warm)
	})
	paper := make(map[string]string)
	for _, scheme := range []string{"light", "dark"} {
		b.show(t, chart, 1280, scheme)
		if got, want := eval[int](t, b, `document.querySelectorAll('.fill').length`), 2*3*3; got != want {
			t.Errorf("%d bars, want %d", got, want)
		}
		for _, fault := range eval[[]string](t, b, layoutFaults) {
			t.Error(fault)
		}
		paper[scheme] = eval[string](t, b, `getComputedStyle(document.querySelector('.paper')).fill`)
		b.screenshot(t, "chart-"+scheme, 1280, 900)
	}
	if paper["light"] == paper["dark"] {
		t.Errorf("the paper is %s in light and dark", paper["light"])
	}
	b.check(t, chart)
}
