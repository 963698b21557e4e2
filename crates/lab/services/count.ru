# Counts by name, in a file that is locked: `POST /count/NAME` answers with the number.
run(lambda do |env|
  count = File.open("/tmp/#{env['PATH_INFO'].tr('/', '-')}", File::RDWR | File::CREAT) do |file|
    file.flock(File::LOCK_EX)
    number = file.read.to_i + 1
    file.rewind
    file.write(number)
    number
  end
  body = "#{count}\n"
  [200, { 'content-length' => body.bytesize.to_s }, [body]]
end)
