// object: inotify, events that stay unread
// status: refused: events of inotify
// note: kept as soon as they are read
#include "object.h"
#include <sys/inotify.h>
#include <sys/stat.h>

int main(void) {
    int fd = inotify_init1(IN_NONBLOCK);
    // Opened is the directory also by whoever looks at what is in it.
    CHECK(inotify_add_watch(fd, "/tmp", IN_CREATE | IN_OPEN) == 1 && !mkdir("/tmp/made", 0700));
    ready();
    while (go_on()) {}
    // It is looked at again and again meanwhile.
    char text[4096];
    struct inotify_event *event = (struct inotify_event *)text;
    CHECK(read(fd, text, sizeof text) > 0);
    CHECK(event->mask == (IN_CREATE | IN_ISDIR) && !strcmp(event->name, "made"));
    PASS();
}
