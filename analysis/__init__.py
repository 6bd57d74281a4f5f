"""From the files of a study's runs to its tables, curves and report. Reads; never trains, never launches."""
