@echo off
rem Starts the service with the settings in .env, and keeps this window open with what it says.
pushd "%~dp0"
if not exist wxopenid.exe echo Extract the whole archive first, then start run.cmd in the folder wxopenid.
wxopenid.exe
pause
