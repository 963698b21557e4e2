// object: files, directories and links in a scratch directory that come and go
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/stat.h>

int main(void) {
    char path[64], other[64], text[64];
    int count = 0;
    ready();
    do {
        snprintf(path, sizeof path, "/tmp/d%d", count);
        CHECK(!mkdir(path, 0750));
        snprintf(path, sizeof path, "/tmp/d%d/file", count);
        int fd = open(path, O_CREAT | O_WRONLY, 0640);
        CHECK(fd >= 0 && dprintf(fd, "%d", count) > 0 && !close(fd));
        snprintf(other, sizeof other, "/tmp/d%d/hard", count);
        CHECK(!link(path, other));
        snprintf(other, sizeof other, "/tmp/d%d/soft", count);
        CHECK(!symlink("file", other));
        if (count >= 10) {
            static const char *const names[] = {"file", "hard", "soft"};
            for (int i = 0; i < 3; i++) {
                snprintf(path, sizeof path, "/tmp/d%d/%s", count - 10, names[i]);
                if (i == 2) {
                    CHECK(readlink(path, text, sizeof text) == 4);
                } else {
                    struct stat stat_;
                    CHECK(!stat(path, &stat_));
                    CHECK_EQUAL(stat_.st_nlink, 2 - i);
                    int back = open(path, O_RDONLY);
                    ssize_t got = read(back, text, sizeof text - 1);
                    CHECK(got > 0);
                    text[got] = 0;
                    CHECK_EQUAL(atoi(text), count - 10);
                    close(back);
                }
                CHECK(!unlink(path));
            }
            snprintf(path, sizeof path, "/tmp/d%d", count - 10);
            CHECK(!rmdir(path));
        }
        count++;
    } while (go_on());
    PASS();
}
