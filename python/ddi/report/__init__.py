"""What people read: tables, figures, comparisons, the demo."""
