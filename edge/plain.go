package edge

import (
	"net/http"
	"time"
)

// servePlain answers on the HTTP port: health, and for all else the way to HTTPS. The
// move is permanent and the same for every node, so it may be remembered (308).
func (s *Server) servePlain(w http.ResponseWriter, r *http.Request) {
	s.counters.plain.Add(1)
	rec := &recorder{ResponseWriter: w}
	rec.out.finish() // this server has timeouts for the whole of a request
	x := &exchange{start: time.Now(), site: s.site.Load(), view: s.c.View()}
	if err := s.accept(r, x); err != nil {
		rec.refused(err)
		return
	}
	if r.URL.Path == HealthPath {
		s.serveHealth(rec)
		return
	}
	rec.Header().Set("Location", s.location(x.asked(), r))
	rec.short(http.StatusPermanentRedirect, "see "+rec.Header().Get("Location"))
}
