<?php
// Counts by name, in a file that is locked: `POST /count/NAME` answers with the number.
$name = preg_replace('/[^a-z0-9]/', '', $_SERVER['REQUEST_URI']);
$file = fopen("/tmp/$name", 'c+');
flock($file, LOCK_EX);
$count = (int) fread($file, 20) + 1;
rewind($file);
fwrite($file, (string) $count);
fflush($file);
flock($file, LOCK_UN);
header('Content-Length: ' . strlen("$count\n"));
echo "$count\n";
