package cluster

import (
	"io"

	"go.etcd.io/bbolt"
)

// WriteTo writes a consistent copy of the store's file, as of one moment. A store in memory
// writes nothing.
func (s *Store) WriteTo(w io.Writer) (n int64, err error) {
	if s.db == nil {
		return 0, nil
	}
	err = s.db.View(func(tx *bbolt.Tx) error {
		n, err = tx.WriteTo(w)
		return err
	})
	return n, err
}
