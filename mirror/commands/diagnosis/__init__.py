"""What `pps-mirror doctor` examines, a module for each subject. It tries things out, changes nothing, asks little."""
