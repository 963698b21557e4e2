#!/usr/bin/perl
# Counts by name, in a file that is locked: `POST /count/NAME` answers with the number.
use strict;
use Fcntl qw(:flock :seek O_RDWR O_CREAT);
(my $name = $ENV{REQUEST_URI}) =~ s/[^a-z0-9]//g;
sysopen(my $file, "/tmp/$name", O_RDWR | O_CREAT) or die "cannot open: $!";
flock($file, LOCK_EX) or die "cannot lock: $!";
my $count = (<$file> // 0) + 1;
seek($file, 0, SEEK_SET);
print $file $count;
close($file) or die "cannot write: $!";
my $body = "$count\n";
printf "Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", length($body), $body;
